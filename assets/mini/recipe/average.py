"""The weighted mean of judges that were trained from each other (transformers directories).

    python average.py --out DIR/mean 0.3 DIR/last 0.7 DIR/more-2
"""
import argparse
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("parts", nargs="+", help="share and directory, in turn")
    args = parser.parse_args()
    shares, directories = [float(x) for x in args.parts[::2]], [Path(x) for x in args.parts[1::2]]
    if len(shares) != len(directories) or abs(sum(shares) - 1) > 1e-9:
        parser.error("shares and directories in turn, shares of 1 in all")
    weights = [load_file(d / "model.safetensors") for d in directories]
    mean = {k: sum(share * w[k].float() for share, w in zip(shares, weights)) for k in weights[0]}
    shutil.copytree(directories[-1], args.out, dirs_exist_ok=True)
    with safe_open(directories[-1] / "model.safetensors", "pt") as file:
        save_file(mean, args.out / "model.safetensors", metadata=file.metadata())


if __name__ == "__main__":
    main()
