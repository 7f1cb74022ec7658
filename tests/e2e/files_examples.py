#!/usr/bin/env python3
"""Runs the Python of docs/files.md, block after block, against a finished run.

    files_examples.py RUN    (from the repository's root; needs h5py, NumPy and Pillow, and diffusers for the blocks that import it)

Ends with 77 where this Python lacks the former, and says what it left out where it lacks the latter.
"""
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

DOCUMENT = Path("docs/files.md")


def blocks(text):
    """Line and source of each block of Python."""
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)), found[1]


def main():
    missing = [name for name in ("h5py", "numpy", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {sys.executable} has no {', '.join(missing)}; ATELIER_PYTHON names a Python that has them")
        sys.exit(77)
    found = list(blocks(DOCUMENT.read_text()))
    assert len(found) > 10, f"only {len(found)} blocks of Python in {DOCUMENT}"
    os.environ["RUN"] = sys.argv[1]
    names = {"__name__": "examples"}
    with tempfile.TemporaryDirectory() as out:
        os.environ["OUT"] = out
        for line, source in found:
            if "import torch" in source and importlib.util.find_spec("diffusers") is None:
                print(f"skipped: {DOCUMENT}:{line + 1}, since {sys.executable} has no diffusers")
                continue
            # Lines of errors are the document's.
            exec(compile("\n" * line + source, str(DOCUMENT), "exec"), names)
        pictures = {p.name for p in Path(out).glob("*.png")}
        assert {"0.png", "reference-0.png"} <= pictures, f"no pictures were written: {pictures}"
    print(f"{DOCUMENT}: {len(found)} examples")


if __name__ == "__main__":
    main()
