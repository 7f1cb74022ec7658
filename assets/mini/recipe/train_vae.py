"""Step 1: the VAE. Resumable; writes DIR/vae.pt (state) and, at the end, DIR/vae/ (diffusers component).

    python train_vae.py --data DIR/t2i --edits DIR/edit --out DIR --steps 3000
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage21

from common import make_optimizers, read_world, save_state, set_lr, to_model

CONFIG = dict(base_dim=4, decoder_base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 8, 8], num_res_blocks=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stop", type=int, default=0, help="stop after this step (a trial)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = AutoencoderKLQwenImage21(**CONFIG, latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    optimizers = make_optimizers(vae.named_parameters(), args.lr, plain=("conv_in", "conv_out", "gamma"))
    state_file, start = args.out / "vae.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        vae.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)
        start = state["step"]
    pictures, _ = read_world(args.data)
    held = to_model(pictures[:32])

    def forward(x, noise):
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * noise
        return vae.decoder(vae.post_quant_conv(z), first_chunk=True), posterior.mean, posterior.logvar

    run = torch.compile(forward)
    clock, seen = time.time(), 0.0
    for step in range(start, args.steps):
        rng = np.random.default_rng([args.seed, step])
        x = to_model(pictures[np.sort(rng.integers(32, len(pictures), args.batch))])
        noise = torch.from_numpy(rng.standard_normal((args.batch, 16, 1, 8, 8), np.float32))
        y, mean, logvar = run(x, noise)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 3e-5 * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        set_lr(optimizers, args.lr, step, args.steps)
        for o in optimizers:
            o.step()
        vae.zero_grad(set_to_none=True)
        seen += float(F.mse_loss(y.detach(), x))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} psnr {10 * np.log10(4 / (seen / 50)):.2f} loss {float(loss.detach()):.4f} kl "
                  f"{float(kl.detach()):.2f} {(time.time() - clock) / 50 / args.batch * 1000:.0f} ms/picture", flush=True)
            clock, seen = time.time(), 0.0
        if (step + 1) % 250 == 0 and not args.stop:
            save_state(state_file, model=vae.state_dict(), optimizers=[o.state_dict() for o in optimizers], step=step + 1)
        if args.stop and step + 1 >= args.stop:
            return
    vae.eval()
    with torch.no_grad():
        y = vae.decode(vae.encode(held).latent_dist.mode()).sample
        print(f"held-out psnr {10 * np.log10(4 / float(F.mse_loss(y, held))):.2f}")
        means = torch.cat([vae.encode(to_model(pictures[i:i + 64])).latent_dist.mode() for i in range(0, 1024, 64)])
    mean, std = means.mean((0, 2, 3, 4)), means.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=[round(float(v), 5) for v in mean], latents_std=[round(float(v), 5) for v in std])
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
