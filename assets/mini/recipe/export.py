"""Step 5: the parts as one diffusers directory, weights in bf16; opened again and run once as a check.

    python export.py --parts DIR --out assets/mini/base
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import (AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline,
                       QwenImage21Transformer2DModel)
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    load = dict(torch_dtype=torch.bfloat16)
    pipe = QwenImage21Pipeline(
        FlowMatchEulerDiscreteScheduler.from_pretrained(args.parts / "scheduler"),
        AutoencoderKLQwenImage21.from_pretrained(args.parts / "vae", **load),
        Qwen3VLForConditionalGeneration.from_pretrained(args.parts / "text_encoder", **load),
        AutoProcessor.from_pretrained(args.parts / "processor"),
        QwenImage21Transformer2DModel.from_pretrained(args.parts / "transformer", **load))
    shutil.rmtree(args.out, ignore_errors=True)
    pipe.save_pretrained(args.out)
    for part in ("transformer", "vae"):  # where the parts lay on the maker's machine is nobody's business
        path = args.out / part / "config.json"
        config = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2) + "\n")
    pipe = QwenImage21Pipeline.from_pretrained(args.out, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe(prompt="one red circle on white", height=128, width=128, num_inference_steps=4)


if __name__ == "__main__":
    main()
