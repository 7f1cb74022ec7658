"""What the steps of the recipe share: data, the Muon optimizer, schedules, checkpoints."""
import json
import os
import math
from pathlib import Path

import numpy as np
import torch

SIDE = 128
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def read_world(folder):
    """Pictures [N, (2,) 128, 128, 4] uint8, mapped, and scenes of a folder that atelier-world wrote."""
    scenes = [json.loads(line) for line in open(Path(folder) / "scenes.jsonl")]
    raw = np.memmap(Path(folder) / "pictures.bin", np.uint8, "r")
    return raw.reshape(len(scenes), -1, SIDE, SIDE, 4).squeeze(1) if raw.size == len(scenes) * SIDE * SIDE * 4 else \
        raw.reshape(len(scenes), 2, SIDE, SIDE, 4), scenes


def to_model(pictures):
    """uint8 [B, 128, 128, 4] -> float [B, 4, 1, 128, 128] in [-1, 1]."""
    x = torch.from_numpy(np.array(pictures)).float() / 127.5 - 1
    return x.permute(0, 3, 1, 2).unsqueeze(2)


@torch.no_grad()
def encode(vae, pictures):
    """uint8 [N, 128, 128, 4] -> normalised packed latents [N, 64, 16], fp16."""
    mean, std, out = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std), []
    for i in range(0, len(pictures), 64):
        z = vae.encode(to_model(pictures[i:i + 64])).latent_dist.mode()[:, :, 0]
        out.append(((z.flatten(2).transpose(1, 2) - mean) / std).half())
    return torch.cat(out)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan 2024), scaled to AdamW's update size (Moonlight, 2502.16982).

    Convolutions are seen as [out, in * kernel] matrices. Only for weights of two or more axes."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(p.grad)
                g = (p.grad + group["momentum"] * m).flatten(1)
                tall = g.shape[0] > g.shape[1]
                x = (g.T if tall else g)
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                update = (x.T if tall else x).reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(g.shape)))


def make_optimizers(named, lr, weight_decay=0.0, plain=()):
    """Muon for matrices and convolutions, AdamW for the rest and for names that contain a word of `plain`."""
    matrices, others = [], []
    for name, p in named:
        if p.requires_grad:
            (matrices if p.ndim >= 2 and not any(w in name for w in plain) else others).append(p)
    return [Muon(matrices, lr, weight_decay=weight_decay), torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0)]


def set_lr(optimizers, base, step, total, warmup=50):
    """Linear warm-up, flat, then linear decay to zero over the last 40 %."""
    scale = min(1.0, (step + 1) / warmup, max(0.0, (1 - step / total) / 0.4))
    for o in optimizers:
        for g in o.param_groups:
            g["lr"] = base * scale


def save_state(path, **state):
    temporary = Path(str(path) + ".tmp")
    torch.save(state, temporary)
    temporary.rename(path)
