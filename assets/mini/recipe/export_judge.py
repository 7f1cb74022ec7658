"""Step 8: the trained judge in bf16, opened again by transformers as a check.

    python export_judge.py --judge RUN/judge --out ../judge
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen3VLForConditionalGeneration

KEPT = ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    model = Qwen3VLForConditionalGeneration.from_pretrained(args.judge, dtype=torch.bfloat16)
    model.save_pretrained(args.out)
    for name in KEPT:
        shutil.copy(args.judge / name, args.out)
    path = args.out / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
    path.write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "model.safetensors").chmod(0o644)
    Qwen3VLForConditionalGeneration.from_pretrained(args.out)


if __name__ == "__main__":
    main()
