"""The miniature's face embedding: a picture in, a direction for who it shows and a number for whether it shows a face out.

    python train_identity.py --data DIR/identity --heldout DIR/identity-heldout --out ../identity [--samples RUN/edit/iter-0001/rollout ...]

Trained on pairs of a portrait and a picture (atelier-world --task identity) so that the cosine of their embeddings is
(truth - 1) / 4, the truth being the world's measure of identity; `--samples` adds a rollout's own pictures of portrait edits
with their truth. Writes config.json and model.safetensors (f16).
"""
import argparse
import json
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from common import make_optimizers, set_lr

SIDE, CHANNELS, WIDTH = 128, [16, 32, 64, 64], 64


class FaceNet(nn.Module):
    """Convolutions of stride 2 with SiLU, then one over all places that are left: WIDTH numbers and the face's logit."""

    def __init__(self):
        super().__init__()
        sizes = [3, *CHANNELS]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(sizes, sizes[1:]))
        self.head = nn.Conv2d(CHANNELS[-1], WIDTH + 1, SIDE >> len(CHANNELS))

    def forward(self, pictures):
        """uint8 [B, 128, 128, 4] -> unit embeddings [B, WIDTH], logits [B]."""
        x = pictures[..., :3].permute(0, 3, 1, 2).to(self.head.weight.dtype) / 127.5 - 1
        for convolution in self.convolutions:
            x = F.silu(convolution(x))
        x = self.head(x).flatten(1)
        return F.normalize(x[:, :WIDTH], dim=1), x[:, WIDTH]


class Pairs:
    """Pictures [N, 2, 128, 128, 4], truths, kinds, whether damaged."""

    def __init__(self, folder):
        lines = [json.loads(line) for line in open(Path(folder) / "scenes.jsonl")]
        self.pictures = np.memmap(Path(folder) / "pictures.bin", np.uint8, "r").reshape(-1, 2, SIDE, SIDE, 4)
        self.truth = np.array([line["truth"] for line in lines], np.float32)
        self.kind = np.array([line["kind"] for line in lines])
        self.damaged = np.array([line["damaged"] for line in lines])
        # Where damage leaves something of a face, nobody can say whether there is one: NaN.
        self.face = np.where(self.kind == "faceless", 0, np.where(~self.damaged | (self.truth >= 2), 1, np.where(self.truth <= 1, 0, np.nan)))


def add_samples(pairs, folders):
    """Portrait edits of rollouts that were scored by the world."""
    pictures, truths = [], []
    for path in sorted(p for folder in folders for p in Path(folder).glob("shard-*.h5")):
        with h5py.File(path) as shard:
            group = shard[next(name for name in shard if name.startswith("shape-"))]
            if "identity" not in group["reward"] or not len(shard["prompts"].get("image_prompt", [])):
                continue
            source = shard["prompts/images/0"][:]
            for m in range(len(group["sample_id"])):
                if group["reward/identity/present"][m]:
                    pictures.append(np.stack([source, group["picture"][m]]))
                    truths.append(group["reward/identity/score"][m])
    pairs.pictures = np.concatenate([pairs.pictures, np.stack(pictures)])
    pairs.truth = np.concatenate([pairs.truth, np.array(truths, np.float32)])
    pairs.face = np.concatenate([pairs.face, np.where(np.array(truths) >= 2, 1, np.nan)])
    return len(truths)


def ranks(x):
    order = np.argsort(x, kind="stable")
    values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse] if len(order) else x


def spearman(a, b):
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def auc(positive, negative):
    r = ranks(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((r[:n].sum() - n * (n + 1) / 2) / (n * m))


@torch.no_grad()
def cosines(net, pictures):
    out, faces = [], []
    for i in range(0, len(pictures), 256):
        part = torch.from_numpy(np.array(pictures[i:i + 256]))
        (a, _), (b, face) = net(part[:, 0]), net(part[:, 1])
        out.append((a * b).sum(1))
        faces.append(face)
    return torch.cat(out).numpy(), torch.cat(faces).numpy()


def report(net, pairs):
    cosine, face = cosines(net, pairs.pictures)
    score = np.where(face > 0, 1 + 4 * cosine.clip(0, 1), 1)
    same, other = pairs.kind == "edited", pairs.kind == "another"
    clean = ~pairs.damaged
    sure = ~np.isnan(pairs.face)
    return {"auc_clean": auc(cosine[same & clean], cosine[other & clean]), "auc_all": auc(cosine[same], cosine[other]),
            "same_mean": float(cosine[same & clean].mean()), "other_mean": float(cosine[other & clean].mean()),
            "spearman": spearman(score, pairs.truth), "mae": float(np.abs(score - pairs.truth).mean()),
            "face_accuracy": float(((face > 0) == (pairs.face > 0.5))[sure].mean())}


@torch.no_grad()
def place_bound(net, pairs):
    """Moves the face's logit so that 0 is where calling a picture faceless (score 1) costs least in the score's mean absolute error."""
    cosine, face = cosines(net, pairs.pictures[:2000])
    bounds = np.arange(-8, 4.5, 0.5)
    errors = [np.abs(np.where(face > b, 1 + 4 * cosine.clip(0, 1), 1) - pairs.truth[:2000]).mean() for b in bounds]
    best = float(bounds[int(np.argmin(errors))])
    net.head.bias[WIDTH] -= best
    print("the face's bound was at", best)


def save(net, folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.half().contiguous() for name, p in net.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({"model_type": "atelier_face_embedding", "side": SIDE, "channels": CHANNELS,
                                                    "width": WIDTH}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--heldout", required=True)
    parser.add_argument("--samples", nargs="*", default=[], help="rollouts; their pictures make a quarter of each batch")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", help="weights to go on from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    pairs, heldout = Pairs(args.data), Pairs(args.heldout)
    drawn, own = len(pairs.truth), None
    if args.samples:
        own = Pairs.__new__(Pairs)
        own.pictures, own.truth, own.face = np.empty((0, 2, SIDE, SIDE, 4), np.uint8), np.empty(0, np.float32), np.empty(0)
        print(add_samples(own, args.samples), "pictures of rollouts")
    net = FaceNet()
    if args.init:
        net.load_state_dict({name: p.float() for name, p in load_file(args.init).items()})
    print(sum(p.numel() for p in net.parameters()), "parameters")
    optimizers = make_optimizers(net.named_parameters(), args.lr)
    begin, losses = time.time(), []
    for step in range(args.steps):
        set_lr(optimizers, args.lr, step, args.steps)
        count = args.batch if own is None else args.batch * 3 // 4
        rows = np.sort(rng.choice(drawn, count, replace=False))
        pictures, truth, is_face = pairs.pictures[rows], pairs.truth[rows], pairs.face[rows]
        if own is not None:
            more = rng.choice(len(own.truth), args.batch - count)
            pictures, truth, is_face = (np.concatenate(x) for x in ((pictures, own.pictures[more]), (truth, own.truth[more]),
                                                                    (is_face, own.face[more])))
        both = torch.from_numpy(np.ascontiguousarray(pictures)).flatten(0, 1)
        e, logits = net(both)
        e, logits = e.unflatten(0, (-1, 2)), logits.unflatten(0, (-1, 2))
        target = torch.from_numpy((truth - 1) / 4)
        fit = ((e[:, 0] * e[:, 1]).sum(1) - target).square().mean()
        label = torch.from_numpy(is_face).float()
        known = ~label.isnan()
        face = F.binary_cross_entropy_with_logits(logits[:, 0], torch.ones(len(label))) + \
            F.binary_cross_entropy_with_logits(logits[known, 1], label[known])
        for o in optimizers:
            o.zero_grad()
        (fit + 0.1 * face).backward()
        for o in optimizers:
            o.step()
        losses.append((fit.item(), face.item()))
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            print(step + 1, f"{time.time() - begin:.0f} s", "fit, face", np.mean(losses[-200:], 0).round(5), report(net, heldout), flush=True)
            save(net, args.out)
    place_bound(net, pairs)
    save(net, args.out)
    net.load_state_dict({name: p.half().float() for name, p in net.state_dict().items()})
    print("as stored, in f16:", report(net, heldout))


if __name__ == "__main__":
    main()
