"""Step 7: eyes for the judge. Trains the vision tower of a toy Qwen3-VL to tell what a picture shows; writes DIR/eyes.pt.

    python train_eyes.py --t2i DIR/eyes-t2i --edit DIR/eyes-edit --labels DIR/drawn.h5 DIR/samples.h5 --base ../base --out DIR --steps 400

Linear heads on the features that go into the text (merger and deepstack) name the scene: what there is, its colours and places, a face's
lengths; and tell how good labelled pictures look. The heads are thrown away. Without this the text learns what answers sound like long before
it looks at a picture: after 1,600 steps of train_judge.py from random weights its reasons were still guesses.
"""
import argparse
import time
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from common import make_optimizers, read_world, save_state, set_lr
from train_judge import GRID, TOKENS, make_config, patches

COLOURS, SHAPES = ["red", "green", "blue", "yellow", "purple", "orange"], ["circle", "square", "triangle", "star"]
CHOICES = dict(
    category=["general", "portrait", "landscape", "typography"], count=[0, 1, 2, 3], ground_colour=["white", "gray", "black"],
    order=["", "left of", "above"], colour0=COLOURS, shape0=SHAPES, colour1=COLOURS, shape1=SHAPES, behind=["blue", "green", "gray"],
    hair=["black", "brown", "blond", "red"], style=["short", "long"], skin=["light", "tan", "dark"], glasses=[False, True],
    time=["day", "sunset", "night"], ground=["hills", "sea", "desert"], trees=[0, 1, 2, 3],
    word=["SUN", "CAT", "DOG", "ART", "TEA", "BOX", "MAP", "FLY"], ink=COLOURS)
LENGTHS = ["half_width", "half_height", "eye_distance", "mouth_width"]
SPREAD = [2, 2, 1, 1.7]   # pixels: a length's standard deviation in the world
CENTRE = [27.5, 34.5, 12.2, 10]
NUMBERS = LENGTHS + ["aesthetics", "portrait"]
OFFSET, SIZE = {}, 0
for name, values in CHOICES.items():
    OFFSET[name] = SIZE
    SIZE += len(values)


def targets_of(scene):
    """What a scene shows: index in each of CHOICES (-1: not asked), and NUMBERS (NaN: not asked)."""
    known, numbers = dict(category=scene["category"]), [np.nan] * len(NUMBERS)
    if scene["category"] == "general":
        objects = sorted(scene["objects"], key=lambda o: o["x"] + o["y"])
        known.update(count=len(objects), ground_colour=scene["background"], order=scene.get("relation", ""))
        for i, o in enumerate(objects[:2]):
            known.update({f"colour{i}": o["colour"], f"shape{i}": o["shape"]})
    elif scene["category"] == "portrait":
        known.update(behind=scene["background"], hair=scene["hair_colour"], style=scene["hair_style"], skin=scene["skin"], glasses=scene["glasses"])
        numbers[:4] = [(scene[k] - c) / s for k, c, s in zip(LENGTHS, CENTRE, SPREAD)]
    elif scene["category"] == "landscape":
        known.update(time=scene["time"], ground=scene["ground"], trees=scene["trees"])
    else:
        known.update(ground_colour=scene["background"], word=scene["word"], ink=scene["colour"])
    return [values.index(known[name]) if name in known else -1 for name, values in CHOICES.items()], numbers


class Data:
    def __init__(self, args):
        t2i, scenes = read_world(args.t2i)
        edits, pairs = read_world(args.edit)
        self.drawn = [(t2i, i, None, targets_of(s["attributes"])) for i, s in enumerate(scenes)]
        for i, s in enumerate(pairs):
            self.drawn += [(edits, i, k, targets_of(s["attributes"][w])) for k, w in enumerate(("source", "result"))]
        self.labelled = []   # file, picture, {number: label}
        for path in args.labels:
            f = h5py.File(path)
            labels = np.bincount(f["scores/sample"][:], f["scores/score"][:]) / np.bincount(f["scores/sample"][:])
            found = {}
            for picture, dimension, label in zip(f["samples/picture"][:], f["samples/dimension"].asstr()[:], labels):
                if dimension in NUMBERS:
                    found.setdefault(picture, {})[dimension] = (label - 3.5) / 1.2
            self.labelled += [(f, p, v) for p, v in found.items()]

    def batch(self, rng, size):
        pictures, choices, numbers = [], [], []
        for _ in range(size):
            if rng.random() < 0.4:
                f, picture, known = self.labelled[rng.integers(len(self.labelled))]
                pictures.append(f[f"pictures/{picture}"][..., :3])
                choices.append([-1] * len(CHOICES))
                numbers.append([known.get(name, np.nan) for name in NUMBERS])
                continue
            raw, i, k, (choice, number) = self.drawn[rng.integers(len(self.drawn))]
            picture = np.array(raw[i] if k is None else raw[i][k])[..., :3].astype(np.float32)
            if rng.random() < 0.5:   # so that lesser pictures are read as well
                picture += rng.normal(0, rng.uniform(0, 8), picture.shape)
                picture += rng.uniform(0, 0.3) * (rng.uniform(80, 210) - picture)
            pictures.append(picture.clip(0, 255).round().astype(np.uint8))
            choices.append(choice)
            numbers.append(number)
        return pictures, torch.tensor(choices), torch.tensor(np.array(numbers)).float()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t2i", required=True)
    parser.add_argument("--edit", required=True)
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = Data(args)
    tokenizer = Tokenizer.from_file(str(args.base / "processor" / "tokenizer.json"))
    model = Qwen3VLForConditionalGeneration(make_config(tokenizer)).model.visual
    layers = 1 + len(model.deepstack_merger_list)
    heads = torch.nn.ModuleList(torch.nn.Linear(TOKENS * model.config.out_hidden_size, SIZE + len(NUMBERS)) for _ in range(layers))
    named = [*model.named_parameters(), *(("head." + n, p) for n, p in heads.named_parameters())]
    optimizers = make_optimizers(named, args.lr, 0.01, plain=("pos_embed", "head"))
    clock, history = time.process_time(), []
    for step in range(args.steps):
        set_lr(optimizers, args.lr, step, args.steps, 30)
        pictures, choices, numbers = data.batch(np.random.default_rng([args.seed, step]), args.batch)
        seen = model(patches(pictures), grid_thw=torch.tensor([[1, GRID, GRID]] * len(pictures)))
        loss, right = 0, []
        for head, features in zip(heads, [seen.pooler_output, *seen.deepstack_features]):
            out = head(F.layer_norm(features.view(len(pictures), -1), (TOKENS * model.config.out_hidden_size,)))
            for k, (name, values) in enumerate(CHOICES.items()):
                asked = choices[:, k] >= 0
                if not asked.any():
                    continue
                logits = out[asked, OFFSET[name]:OFFSET[name] + len(values)]
                loss = loss + F.cross_entropy(logits, choices[asked, k], reduction="sum") / len(pictures)
                if features is seen.pooler_output:
                    right.append((logits.argmax(-1) == choices[asked, k]).float())
            known = ~numbers.isnan()
            off = (out[:, SIZE:] - numbers.nan_to_num()).square() * known
            loss = loss + off.sum() / len(pictures)
            if features is seen.pooler_output:
                error = off.sum() / known.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for o in optimizers:
            o.step()
        model.zero_grad(set_to_none=True)
        heads.zero_grad(set_to_none=True)
        history.append((loss.item(), torch.cat(right).mean().item(), error.item()))
        if (step + 1) % 25 == 0:
            means = np.mean(history, 0)
            print(f"{time.strftime('%H:%M')} step {step + 1} loss {means[0]:.3f} choices right {means[1]:.3f} squared error {means[2]:.3f} "
                  f"{(time.process_time() - clock) / 25 * 1000:.0f} ms/step", flush=True)
            clock, history = time.process_time(), []
            save_state(args.out / "eyes.pt", visual=model.state_dict())


if __name__ == "__main__":
    main()
