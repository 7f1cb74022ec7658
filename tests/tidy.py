#!/usr/bin/env python3
"""clang-tidy with the checks of .clang-tidy; warnings are errors.

    tests/tidy.py [FILE.cpp...]      default: all of lib, io and apps but CUDA, NCCL and OpenCV

Most of its time goes into the headers of libraries, which it reads to their end for every check: several sources are read as one. Their folders differ,
and so do their namespaces; those that don't compile together, or on which clang-tidy crashes, are read apart.
"""
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOGETHER = 12
ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("ATELIER_ASAN_BUILD_DIR", "build-asan")


FOLDERS = ("lib", "io", "apps")


def is_read(path):
    """Whether a path below the root or the build is of the library or the programs."""
    return path.parts[0] in FOLDERS and not {"cuda", "nccl", "opencv"} & set(path.parts)


def arguments():
    """Everybody's directories and definitions, in the order in which they come, and the language as it is compiled (without headers read before)."""
    found = {}
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        file = Path(entry["file"]).resolve()
        root = BUILD if file.is_relative_to(BUILD) else ROOT  # sources that are compiled as one are included by a file of the build
        args = shlex.split(entry["command"])[1:] if file.is_relative_to(root) and is_read(file.relative_to(root)) else []
        for at, x in enumerate(args):
            if x == "-isystem":
                found[x, args[at + 1]] = None
            elif x != "-Winvalid-pch" and x.startswith(("-I", "-D", "-W", "-std", "-march", "-fopenmp")):
                found[x,] = None
    return [x for xs in found for x in xs]


def check(files, args, name):
    """Finds nothing in these files, or says what; returns whether."""
    together = BUILD / "tidy" / f"{name}.cpp"
    together.write_text("".join(f'#include "{f}"  // NOLINT\n' for f in files))
    done = subprocess.run(["clang-tidy", "--quiet", str(together), "--", *args], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    if done.returncode == 0:
        return True
    if (done.returncode < 0 or "clang-diagnostic-error" in done.stdout) and len(files) > 1:  # below 0: clang-tidy itself crashed
        half = len(files) // 2
        return all([check(files[:half], args, name + "a"), check(files[half:], args, name + "b")])
    print(done.stdout, flush=True)
    return False


def main():
    subprocess.run(["bash", "-c", "set -e; source tests/clang_build.sh; sanitized_configure"], cwd=ROOT, check=True)
    sources = {f for folder in FOLDERS for f in (ROOT / folder).rglob("*.cpp") if is_read(f.relative_to(ROOT))}
    args = arguments()
    files = [Path(f).resolve() for f in sys.argv[1:]] or sorted(sources)
    unknown = [str(f) for f in files if f not in sources]
    if unknown:
        sys.exit(f"tidy: not a source of lib, io or apps: {', '.join(unknown)}")
    (BUILD / "tidy").mkdir(exist_ok=True)
    parts = -(-len(files) // TOGETHER)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        clean = list(pool.map(lambda i: check(files[i::parts], args, str(i)), range(parts)))
    print(f"clang-tidy: {len(files)} files, {'clean' if all(clean) else 'not clean'}")
    sys.exit(not all(clean))


if __name__ == "__main__":
    main()
