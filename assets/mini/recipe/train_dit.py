"""Step 3: the transformer. Resumable; writes DIR/dit.pt (state) and DIR/transformer/ (EMA weights, diffusers component).

    python train_dit.py --out DIR --steps 4000 --minutes 62
    python train_dit.py --out DIR --init DIR/dit.pt --flawed 0.45 --steps 500 --lr 1e-3    (after add_flaws.py)

The second goes on from the first's weights with a share of flawed pictures (DIR/flawed.pt), as uncurated data has them; its state is
DIR/dit-flawed.pt.
Batches hold one task and one prompt length, so that nothing is padded (as at inference). One batch in ten has an empty
prompt, for guidance. Timesteps are logit-normal, leaning to noise as the sampler's shifted schedule does.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImage21Transformer2DModel

from common import make_optimizers, save_state, set_lr

CONFIG = dict(patch_size=1, in_channels=16, out_channels=16, num_layers=6, attention_head_dim=32, num_attention_heads=6,
              context_in_dim=96, mlp_ratio=3, axes_dims_rope=(8, 12, 12))


class Data:
    """Rows by task and prompt length; `batch(rng)` gives states, reference latents or None, target latents."""

    def __init__(self, folder, size, flawed):
        e = torch.load(folder / "embeddings.pt", weights_only=False)
        z = torch.load(folder / "latents.pt", weights_only=False)
        self.table, self.texts, self.edit, self.edit_empty = e["table"], e["t2i"], e["edit"], e["edit_empty"]
        self.t2i, self.source, self.result = z["t2i"], z["source"], z["result"]
        self.size = size
        self.groups = {}
        for i, text in enumerate(self.texts):
            self.groups.setdefault(("t2i", len(self.table[text])), []).append(i)
        for i, states in enumerate(self.edit):
            self.groups.setdefault(("edit", len(states)), []).append(i)
        self.keys = list(self.groups)
        weight = np.array([len(self.groups[k]) / (len(self.t2i) if k[0] == "t2i" else len(self.edit)) *
                           (0.6 if k[0] == "t2i" else 0.4) for k in self.keys])
        self.weight = weight / weight.sum()
        self.share, self.flawed = flawed, {}
        if flawed > 0:
            f = torch.load(folder / "flawed.pt", weights_only=False)
            for i, row in enumerate(f["t2i_rows"]):
                self.flawed.setdefault(("t2i", len(self.table[self.texts[row]])), []).append(len(self.t2i) + i)
            for i, row in enumerate(f["edit_rows"]):
                self.flawed.setdefault(("edit", len(self.edit[row])), []).append(len(self.edit) + i)
            self.texts = self.texts + [self.texts[row] for row in f["t2i_rows"]]
            self.edit = self.edit + [self.edit[row] for row in f["edit_rows"]]
            self.t2i = torch.cat([self.t2i, f["t2i"]])
            self.source = torch.cat([self.source, self.source[f["edit_rows"]]])
            self.result = torch.cat([self.result, f["edit"]])

    def batch(self, rng):
        task, length = self.keys[rng.choice(len(self.keys), p=self.weight)]
        rows = rng.choice(self.groups[task, length], self.size)
        if (task, length) in self.flawed:
            rows = np.where(rng.random(self.size) < self.share, rng.choice(self.flawed[task, length], self.size), rows)
        empty = rng.random() < 0.1
        if task == "t2i":
            states = [self.table["" if empty else self.texts[r]] for r in rows]
            return torch.stack(states), None, self.t2i[rows].float()
        if empty:
            rows = rng.integers(0, len(self.edit_empty), self.size)
        states = [(self.edit_empty if empty else self.edit)[r] for r in rows]
        return torch.stack(states), self.source[rows].float(), self.result[rows].float()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--minutes", type=float, default=1e9, help="decay the learning rate to zero within this time")
    parser.add_argument("--init", type=Path, help="a state whose EMA weights to start from")
    parser.add_argument("--flawed", type=float, default=0.0, help="share of flawed pictures")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = Data(args.out, args.batch, args.flawed)
    # The first picture slot of an edit prompt: count the tokens before <|image_pad|>.
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(args.out / "processor")
    first_slot = len(tokenizer("<|im_start|>user\n<image1><|vision_start|>")["input_ids"])
    model = QwenImage21Transformer2DModel(**CONFIG)
    with torch.no_grad():
        for p in [model.proj_out.weight, model.norm_out.linear.weight]:
            p.zero_()
    optimizers = make_optimizers(model.named_parameters(), args.lr, 0.01, plain=("img_in", "txt_in.in_layer", "proj_out", "linear_1"))
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=False)["ema"])
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    start, elapsed = 0, 0.0
    state_file = args.out / ("dit-flawed.pt" if args.flawed > 0 else "dit.pt")
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        ema = state["ema"]
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)
        start = state["step"]

    def loss_of(states, source, x0, noise, t):
        edit = source is not None
        mask = torch.zeros(1, states.shape[1] + 16, dtype=torch.bool)
        mask[:, states.shape[1]:] = True
        if edit:
            mask[:, first_slot:first_slot + 16] = True
        xt = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        hidden = torch.cat([source, xt], 1) if edit else xt
        shapes = [(1, 8, 8)] * (2 if edit else 1)
        with torch.autocast("cpu", torch.bfloat16):
            v = run(hidden_states=hidden, encoder_hidden_states=states.float(), timestep=t,
                    img_shapes=[shapes] * len(x0), img_mask=mask.expand(len(x0), -1), return_dict=False)[0]
        return (v[:, -64:].float() - (noise - x0)).square().mean()

    run = torch.compile(model, dynamic=True) if args.compile else model

    def export():
        out = QwenImage21Transformer2DModel(**CONFIG)
        out.load_state_dict(ema)
        out.bfloat16().save_pretrained(args.out / "transformer")

    clock, total, total_edit = time.time(), [], []
    begin = time.time()
    for step in range(start, args.steps):
        rng = np.random.default_rng([args.seed, step])
        states, source, x0 = data.batch(rng)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32))
        t = torch.sigmoid(torch.from_numpy(rng.standard_normal(len(x0)).astype(np.float32)) + 0.4)
        loss = loss_of(states, source, x0, noise, t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        elapsed = (time.time() - begin) / 60
        fraction = max(step / args.steps, elapsed / args.minutes)
        set_lr(optimizers, args.lr, step if fraction < 0.6 else int(fraction * args.steps), args.steps, 30)
        for o in optimizers:
            o.step()
        model.zero_grad(set_to_none=True)
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                ema[k].lerp_(v, 1 - decay)
        (total if source is None else total_edit).append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss t2i {np.mean(total or [0]):.4f} edit {np.mean(total_edit or [0]):.4f} "
                  f"{(time.time() - clock) / 50 * 1000:.0f} ms/step lr {optimizers[0].param_groups[0]['lr']:.1e}", flush=True)
            clock, total, total_edit = time.time(), [], []
        if (step + 1) % 200 == 0 or step + 1 == args.steps or fraction >= 1:
            save_state(state_file, model=model.state_dict(), ema=ema, optimizers=[o.state_dict() for o in optimizers],
                       step=step + 1)
            export()
        if fraction >= 1:
            break


if __name__ == "__main__":
    main()
