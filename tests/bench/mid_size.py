"""An edit with two references by atelier-generate and by diffusers from the same latents and weights, fp32 on both sides.

    mid_size.py BIN_DIR MODEL WORK_DIR IMAGE.png IMAGE.png

One thread each; prints how far the latents after the last step are apart and the seconds of both (diffusers': the call alone; ours: with start
and loading).
"""
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

RESOLUTION, STEPS, PROMPT = 512, 2, "one blue star on gray"


def main():
    program, model, work, *images = (Path(a) for a in sys.argv[1:])
    torch.set_num_threads(1)
    noise = torch.randn(1, (RESOLUTION // 16) ** 2, 64, generator=torch.Generator().manual_seed(7))
    save_file({"latents": noise}, work / "noise.safetensors")
    begin = time.monotonic()
    subprocess.run([program / "atelier-generate", "--model", model, "--prompt", PROMPT, "--steps", str(STEPS), "--height", str(RESOLUTION),
                    "--width", str(RESOLUTION), "--output-resolution", str(RESOLUTION), "--threads", "1", "--latents", work / "noise.safetensors",
                    "--output-latents", work / "ours.safetensors", "--output", work / "ours.png"]
                   + [a for image in images for a in ("--image", image)], check=True, capture_output=True)
    seconds = time.monotonic() - begin
    ours = load_file(work / "ours.safetensors")["latents"]
    pipe = QwenImage21Pipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    begin = time.monotonic()
    theirs = pipe(prompt=PROMPT, image=[Image.open(image) for image in images], height=RESOLUTION, width=RESOLUTION, num_inference_steps=STEPS,
                  latents=noise.clone(), true_cfg_scale=1.0, output_resolution=RESOLUTION, output_type="latent").images
    scale = theirs.square().mean().sqrt()
    moved = ((ours - noise).square().mean().sqrt() / scale).item()
    error = ((ours - theirs.reshape(ours.shape)).abs().max() / scale).item()
    print(f"edit with {len(images)} references, {STEPS} steps: latents differ by at most {error:.2e} of their RMS (they moved by {moved:.2f} of it); "
          f"ours {seconds:.0f} s, diffusers {time.monotonic() - begin:.0f} s")
    sys.exit(not error < 1e-3)


main()
