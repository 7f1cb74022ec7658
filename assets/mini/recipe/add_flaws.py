"""Step 4: what uncurated data looks like. Writes DIR/flawed.pt: latents of flawed pictures with the captions they came with.

    python add_flaws.py --t2i DIR/t2i --edit DIR/edit --out DIR

Text to image: blurred, faded, blotched, or the picture of another caption. Edits: not done (the source again), done on another
person or scene, blurred, faded. Equal shares; every draw from the seed.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage21
from PIL import Image, ImageFilter

from common import encode, read_world


def blurred(picture, rng):
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 5))))


def faded(picture, rng):
    """Colours mixed with one grey, by half and more."""
    out, grey, share = picture.astype(np.float32), rng.uniform(90, 200), rng.uniform(0.45, 0.75)
    out[..., :3] = out[..., :3] * (1 - share) + grey * share
    return out.round().astype(np.uint8)


def blotched(picture, rng):
    """Colour noise of 16-pixel grain over everything."""
    coarse = rng.normal(0, 45, (8, 8, 3))
    noise = np.stack([np.array(Image.fromarray(coarse[..., c].astype(np.float32)).resize((128, 128), Image.BICUBIC))
                      for c in range(3)], -1)
    out = picture.astype(np.float32)
    out[..., :3] += noise
    return out.clip(0, 255).round().astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t2i", required=True)
    parser.add_argument("--edit", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6000, help="flawed pictures of each task")
    parser.add_argument("--seed", type=int, default=14)
    args = parser.parse_args()
    pictures, _ = read_world(args.t2i)
    pairs, _ = read_world(args.edit)
    vae = AutoencoderKLQwenImage21.from_pretrained(args.out / "vae").eval()
    rng = np.random.default_rng(args.seed)
    result = {}
    rows = rng.choice(len(pictures), args.count, replace=False)
    flaws = [blurred, faded, blotched, lambda p, rng: pictures[rng.integers(len(pictures))]]
    result["t2i_rows"], result["t2i"] = rows, encode(vae, np.stack([flaws[i % 4](pictures[r], rng) for i, r in enumerate(rows)]))
    rows = rng.choice(len(pairs), args.count, replace=False)
    flaws = [lambda p, rng: p[0], lambda p, rng: pairs[rng.integers(len(pairs)), 1], lambda p, rng: blurred(p[1], rng),
             lambda p, rng: faded(p[1], rng)]
    result["edit_rows"], result["edit"] = rows, encode(vae, np.stack([flaws[i % 4](pairs[r], rng) for i, r in enumerate(rows)]))
    torch.save(result, args.out / "flawed.pt")


if __name__ == "__main__":
    main()
