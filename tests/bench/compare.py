#!/usr/bin/env python3
"""The engine beside PyTorch + diffusers: the same weights, inputs, dtype, batch and threads, taken in turn in one go.

    tests/bench/compare.py [--only CASE[,CASE...]] [--repeats 7] [--threads 2] [--markdown FILE]

Every case: both sides prepare, run once, and what comes out is compared (a case whose outputs differ is not timed, and the script
fails); then they take turns, and the medians' ratio is printed with the smallest and largest ratio of neighbours. The floor is the time of
the products alone (the transformer's, and the convolutions of what is decoded) at the speed of one large product of PyTorch's that takes
turns with the two sides; "at the floor" is the ratio of an engine that does nothing else. Where Python lacks
what it needs, that of `scripts/setup.sh python` runs it. Builds build/bin/engine_bench.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ATELIER_BUILD_DIR", ROOT / "build"))

try:
    import numpy as np
    import torch
    import diffusers.utils.logging
    import transformers.utils.logging
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel
    from PIL import Image
    from engine import EDIT_IMAGE, MINI, Engine
    from torch.utils.flop_counter import FlopCounterMode
except ImportError as error:
    if os.environ.get("ATELIER_BENCH_PYTHON"):
        sys.exit(f"compare.py: {sys.executable} still cannot run the comparison: {error}")
    python = subprocess.run([ROOT / "scripts/setup.sh", "python"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    os.environ["ATELIER_BENCH_PYTHON"] = python
    os.execv(python, [python] + sys.argv)

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
RESOLUTION, STEPS, GROUP = 128, 10, 8
PROMPT, NEGATIVE, EDIT = "a blue star left of a green square on gray", "blurry", "add glasses"


def timed(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


class TorchTransformer:
    """P prompts with G targets each as one batch, as trainers run it."""

    def __init__(self, model, inputs, depth, compiled=False, dtype="f32"):
        self.dtype = dtype
        self.net = QwenImage21Transformer2DModel.from_pretrained(model, subfolder="transformer", torch_dtype=torch.float32)
        self.call = torch.compile(self.net) if compiled else self.net
        p, g, tokens, channels = inputs["latents"].shape
        text = inputs["states"].shape[1]
        size = inputs["size"].tolist()
        self.arguments = dict(
            hidden_states=inputs["latents"].reshape(p * g, tokens, channels), timestep=inputs["time"].reshape(-1),
            encoder_hidden_states=inputs["states"].repeat_interleave(g, 0), img_shapes=[[(1, size[0], size[1])]] * (p * g),
            img_mask=torch.cat([torch.zeros(p * g, text), torch.ones(p * g, tokens // 4)], 1).bool(), return_dict=False)
        self.tokens, self.goal, self.depth = tokens, inputs["velocity"].reshape(p * g, tokens, -1), depth
        if depth == "step":
            self.adamw = torch.optim.AdamW(self.net.parameters(), lr=1e-6, weight_decay=0.01, fused=True)

    def velocities(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
            return self.call(**self.arguments)[0][:, -self.tokens:].float()

    def once(self):
        if self.depth == "forward":
            with torch.no_grad():
                self.velocity = self.velocities()
            return
        self.net.zero_grad()
        velocity = self.velocities()
        torch.nn.functional.mse_loss(velocity, self.goal).backward()
        self.velocity = velocity.detach()
        if self.depth == "step":
            self.norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.adamw.step()
        else:
            self.norm = torch.nn.utils.get_total_norm([q.grad for q in self.net.parameters()])

    def run(self):
        return timed(self.once)

    def result(self):
        found = {"velocity": self.velocity}
        return found if self.depth == "forward" else dict(found, gradient_norm=self.norm)


def open_pipeline(dtype="f32"):
    pipe = QwenImage21Pipeline.from_pretrained(MINI, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TorchUpdate:
    """A group's update on three stored steps: whole sequences, no cache, as trainers run it today. `stored`: the engine's trajectory."""

    def __init__(self, prompt, image, stored, dtype, eta=0.7, clip=1e-4):
        pipe, kept, self.dtype = open_pipeline(), [], dtype
        hook = pipe.transformer.register_forward_pre_hook(lambda m, a, k: kept.append(k), with_kwargs=True)
        pipe(prompt=prompt, image=[Image.open(image)] if image else None, height=RESOLUTION, width=RESOLUTION, num_inference_steps=1,
             sigmas=[1.0], true_cfg_scale=1.0, output_resolution=RESOLUTION, use_kv_cache=False, output_type="latent")
        hook.remove()
        self.net, seen = pipe.transformer, kept[0]
        self.net.requires_grad_(True)
        n, k = GROUP, len(stored["trained_step"])
        channels = self.net.config.in_channels
        self.x, self.next = (stored[name].reshape(n, k, -1, channels) for name in ("x", "x_next"))
        self.old, self.advantage, self.sigma = stored["log_prob"].reshape(n, k), stored["advantage"], stored["sigma"].double()
        self.steps, self.eta, self.clip, self.tokens = stored["trained_step"].int().tolist(), eta, clip, self.x.shape[2]
        references = seen["hidden_states"][:, :-self.tokens].expand(n, -1, -1)
        self.references = references
        spread = {name: seen[name].expand(n, *seen[name].shape[1:]).contiguous() for name in ("encoder_hidden_states", "img_mask")}
        mask = seen.get("encoder_hidden_states_mask")
        self.arguments = dict(spread, img_shapes=seen["img_shapes"] * n, return_dict=False,
                              encoder_hidden_states_mask=None if mask is None or mask.all() else mask.expand(n, -1))
        self.adamw = torch.optim.AdamW(self.net.parameters(), lr=1e-6, weight_decay=0.01, fused=True)

    def log_prob(self, k, v):
        i = self.steps[k]
        sigma, delta = self.sigma[i].item(), (self.sigma[i + 1] - self.sigma[i]).item()
        bound = self.sigma[1].item() if sigma == 1 else sigma
        g2 = self.eta ** 2 * sigma / (1 - bound)
        std = (g2 * -delta) ** 0.5
        mean = self.x[:, k] * (1 + g2 * delta / (2 * sigma)) + v * ((1 + g2 * (1 - sigma) / (2 * sigma)) * delta)
        return (-(self.next[:, k] - mean) ** 2 / (2 * std ** 2)).mean((1, 2)) - float(np.log(std)) - 0.5 * float(np.log(2 * np.pi))

    def once(self):
        self.net.zero_grad()
        for k, step in enumerate(self.steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
                v = self.net(hidden_states=torch.cat([self.references, self.x[:, k]], 1), timestep=self.sigma[step].float().expand(GROUP),
                             **self.arguments)[0][:, -self.tokens:].float()
            ratio = torch.exp(self.log_prob(k, v) - self.old[:, k])
            loss = -torch.min(ratio * self.advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * self.advantage)
            (loss.sum() / self.old.numel()).backward()
        self.norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.adamw.step()

    def run(self):
        return timed(self.once)

    def result(self):
        return {"gradient_norm": self.norm}


class TorchRollout:
    def __init__(self, noise, scale, dtype):
        self.pipe, self.scale = open_pipeline(dtype), scale
        self.noise = noise.to(self.pipe.transformer.dtype)

    def once(self):
        with torch.no_grad():
            self.pictures = self.pipe(prompt=PROMPT, negative_prompt=NEGATIVE, height=RESOLUTION, width=RESOLUTION, num_inference_steps=STEPS,
                                      true_cfg_scale=self.scale, latents=self.noise.clone(), num_images_per_prompt=GROUP,
                                      output_resolution=RESOLUTION, output_type="pt").images

    def run(self):
        return timed(self.once)

    def result(self):
        return {"pictures": (self.pictures.float().permute(0, 2, 3, 1) * 2 - 1)}


class TorchDecode:
    def __init__(self, latents, size):
        self.vae = AutoencoderKLQwenImage21.from_pretrained(MINI, subfolder="vae", torch_dtype=torch.float32)
        c = self.vae.config
        grid = latents.reshape(latents.shape[0], size[0], size[1], -1).permute(0, 3, 1, 2).unsqueeze(2)
        self.latents = grid * torch.tensor(c.latents_std).view(1, -1, 1, 1, 1) + torch.tensor(c.latents_mean).view(1, -1, 1, 1, 1)

    def once(self):
        with torch.no_grad():
            self.pictures = self.vae.decode(self.latents, return_dict=False)[0][:, :, 0]

    def run(self):
        return timed(self.once)

    def result(self):
        return {"pictures": self.pictures.permute(0, 2, 3, 1)}


class TorchEncode:
    """Prompts in one padded batch, as the pipeline encodes a list."""

    def __init__(self, prompts):
        self.pipe, self.prompts = open_pipeline(), prompts

    def once(self):
        with torch.no_grad():
            self.encoded = self.pipe.encode_prompt(prompt=self.prompts, image=None, device="cpu")

    def run(self):
        return timed(self.once)

    def result(self):
        states, mask = self.encoded[0], self.encoded[1]
        return {"states": states.reshape(-1) if mask is None else states[mask.bool()]}


def random_transformer_inputs(model, prompts, group, text, size, seed=5):
    c = QwenImage21Transformer2DModel.load_config(model, subfolder="transformer")
    g = torch.Generator().manual_seed(seed)
    tokens = size[0] * size[1]
    return {"states": torch.randn(prompts, text, c["context_in_dim"], generator=g),
            "latents": torch.randn(prompts, group, tokens, c["in_channels"], generator=g),
            "velocity": torch.randn(prompts, group, tokens, c["out_channels"], generator=g),
            "time": torch.rand(prompts, group, generator=g) * 0.9 + 0.05, "size": torch.tensor(size)}


def mid_size(directory):
    """A random transformer of 0.3 B parameters: real head size, 9 layers of 12 heads."""
    where = BUILD / "bench-mid"
    if not (where / "transformer/diffusion_pytorch_model.safetensors").exists():
        torch.manual_seed(3)
        net = QwenImage21Transformer2DModel(in_channels=64, out_channels=64, num_layers=9, attention_head_dim=128, num_attention_heads=12,
                                            context_in_dim=2048)
        net.save_pretrained(where / "transformer")
    return where


def product_flops(model, prefix_rows, group, target_rows, passes=1):
    """Multiplications and additions of the transformer's blocks for one prompt with `group` targets: a prefix pass, of whose last block nobody
    needs more than keys and values, and `passes` target passes forward; a backward pass costs twice that."""
    c = QwenImage21Transformer2DModel.load_config(model, subfolder="transformer")
    width, layers = c["attention_head_dim"] * c["num_attention_heads"], c["num_layers"]
    matrices = 4 * width ** 2 + 3 * width * int(width * c.get("mlp_ratio", 3))
    def rows(n, keys):
        return n * (2 * matrices + 4 * keys * width)
    return (layers - 1) * rows(prefix_rows, prefix_rows) + prefix_rows * 4 * width ** 2 + layers * passes * rows(group * target_rows, prefix_rows + target_rows)


def decode_flops(pictures):
    """Of the miniature's decoder, in fp32 on both sides' floors."""
    side = RESOLUTION // 16
    decode = TorchDecode(torch.zeros(pictures, side * side, 16), [side, side])
    with FlopCounterMode(display=False) as counter:
        decode.once()
    return counter.get_total_flops()


class Floor:
    """Seconds of `flops` in the case's own dtype and `f32_flops` in fp32 at the speed of a large product, medians."""
    SIDE = 2048

    def __init__(self, dtype, flops, f32_flops=0):
        self.flops = {torch.float32: f32_flops}
        own = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.flops[own] = self.flops.get(own, 0) + flops
        self.sides = {d: [torch.randn(self.SIDE, self.SIDE).to(d) for _ in range(2)] for d, f in self.flops.items() if f}
        self.seconds = {d: [] for d in self.sides}

    def measure(self):
        for dtype, (a, b) in self.sides.items():
            self.seconds[dtype].append(timed(lambda: torch.mm(a, b)))

    def total(self):
        return sum(self.flops[d] / (2 * self.SIDE ** 3) * statistics.median(s) for d, s in self.seconds.items())


def held_out_prompts(count):
    import json
    lines = (ROOT / "assets/mini/prompts/t2i-heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def cases(threads, directory, bf16):
    """name -> (target ratio, function that makes the floor or none, function that makes (engine, peer, names compared, tolerance))"""
    all_cases = {}
    dtypes = {"": "f32", "/bf16": "bf16"} if bf16 else {"": "f32"}  # what the peer keeps in bf16 too shows in the tolerance

    def transformer(name, model, target, depth, prompts, group, text, size, compiled, tolerance=2e-4):
        def make(dtype):
            where = model()
            inputs = random_transformer_inputs(where, prompts, group, text, size)
            names = ["velocity"] if depth == "forward" else ["velocity", "gradient_norm"]
            return (Engine(depth, where, threads, directory, inputs, dtype=dtype), TorchTransformer(where, inputs, depth, compiled, dtype), names,
                    tolerance if dtype == "f32" else 0.2)
        def floor(dtype):
            return Floor(dtype, prompts * product_flops(model(), text, group, size[0] * size[1]) * (1 if depth == "forward" else 3))
        for suffix, dtype in dtypes.items():
            all_cases[name + suffix] = (target, partial(floor, dtype), partial(make, dtype))

    mini, mid = lambda: MINI, lambda: mid_size(directory)
    for compiled, target in ((False, 2.0), (True, 1.4)):
        kind = "compiled" if compiled else "eager"
        transformer(f"train-step-32x1/{kind}", mini, target, "step", 32, 1, 24, [8, 8], compiled)
        transformer(f"train-step-4x8/{kind}", mini, target, "step", 4, 8, 24, [8, 8], compiled)

    def update(name, target, prompt, image):
        def make(dtype):
            options = dict(prompt=prompt, group=GROUP, steps=STEPS, dtype=dtype)
            if image:
                options["image"] = image
            engine = Engine("update", MINI, threads, directory, **options)
            engine.run()
            stored = engine.result()
            engine.close()
            return (Engine("update", MINI, threads, directory, **options), TorchUpdate(prompt, image, stored, dtype), ["gradient_norm"],
                    2e-3 if dtype == "f32" else 0.2)
        tokens = (RESOLUTION // 16) ** 2
        def floor(dtype):
            return Floor(dtype, 3 * product_flops(MINI, 24 + (tokens if image else 0), GROUP, tokens, passes=3))
        for suffix, dtype in dtypes.items():
            all_cases[name + suffix] = (target, partial(floor, dtype), partial(make, dtype))

    update("grpo-update-t2i/eager", 2.5, PROMPT, None)
    update("grpo-update-edit/eager", 4.0, EDIT, EDIT_IMAGE)

    def rollout(dtype):
        noise = torch.randn(GROUP, (RESOLUTION // 16) ** 2, 16, generator=torch.Generator().manual_seed(7))
        engine = Engine("rollout", MINI, threads, directory, {"noise": noise}, prompt=PROMPT, negative=NEGATIVE, guidance=4, group=GROUP,
                        steps=STEPS, dtype=dtype)
        return engine, TorchRollout(noise, 4.0, dtype), ["pictures"], 5e-3 if dtype == "f32" else 1.0
    def rollout_floor(dtype):
        return Floor(dtype, 2 * product_flops(MINI, 24, GROUP, (RESOLUTION // 16) ** 2, passes=STEPS), decode_flops(GROUP))
    for suffix, dtype in dtypes.items():
        all_cases["rollout-guided/diffusers" + suffix] = (3.0, partial(rollout_floor, dtype), partial(rollout, dtype))

    def decode():
        latents, size = torch.randn(64, 64, 16, generator=torch.Generator().manual_seed(8)), [8, 8]
        return (Engine("decode", MINI, threads, directory, {"latents": latents, "size": torch.tensor(size)}), TorchDecode(latents, size),
                ["pictures"], 5e-3)
    all_cases["vae-decode-64/eager"] = (1.3, lambda: Floor("f32", decode_flops(64)), decode)

    def encode():
        prompts = held_out_prompts(64)
        return Engine("encode", MINI, threads, directory, prompts), TorchEncode(prompts), ["states"], 5e-3
    all_cases["vlm-encode-64/eager"] = (1.3, None, encode)

    for compiled, target in ((False, 1.1), (True, 1.0)):
        kind = "compiled" if compiled else "eager"
        transformer(f"mid-forward/{kind}", mid, target, "forward", 1, 1, 64, [32, 32], compiled, 2e-3)
        transformer(f"mid-backward/{kind}", mid, target, "backward", 1, 1, 64, [32, 32], compiled, 2e-3)
    return all_cases


def difference(ours, theirs):
    """Largest difference over the RMS of what is expected."""
    a, b = ours.double().reshape(-1), theirs.double().reshape(-1)
    if a.shape != b.shape:
        return float("inf")
    return ((a - b).abs().max() / b.square().mean().sqrt()).item()


def compare(name, target, make_floor, make, repeats):
    engine, peer, names, tolerance = make()
    floor = make_floor() if make_floor else None
    engine.run(), peer.run()
    ours, theirs = engine.result(), peer.result()
    error = max(difference(ours[key], theirs[key]) for key in names)
    if not error <= tolerance:
        engine.close()
        return f"| {name} | | | | {target} | | | outputs differ by {error:.1e} of their RMS |", False
    engine.run(), peer.run()
    pairs = []
    for _ in range(repeats):
        pairs.append((engine.run(), peer.run()))
        if floor:
            floor.measure()
    engine.close()
    mine, other = (statistics.median(side) for side in zip(*pairs))
    ratios = sorted(b / a for a, b in pairs)
    verdict = "" if other / mine >= target else " **below**"
    least = f"{floor.total():.4f} | {other / floor.total():.2f}" if floor else "|"
    return (f"| {name} | {mine:.4f} | {other:.4f} | {other / mine:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]{verdict} | {target} | {least} | {error:.1e} |"), True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    subprocess.run(["cmake", "--build", BUILD, "--target", "engine_bench"], check=True, stdout=subprocess.DEVNULL)
    lines = ["| work | engine, s | peer, s | ratio [least, most] | wanted | products' floor, s | at the floor | outputs differ by |", "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    good = True
    with tempfile.TemporaryDirectory() as directory:
        chosen = cases(arguments.threads, Path(directory), "amx_bf16" in Path("/proc/cpuinfo").read_text())
        wanted = [w for w in arguments.only.split(",") if w]
        for name, (target, floor, make) in chosen.items():
            if wanted and not any(name.startswith(w) for w in wanted):
                continue
            line, same = compare(name, target, floor, make, arguments.repeats)
            print(line, flush=True)
            lines.append(line)
            good &= same
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")
    sys.exit(0 if good else 1)


main()
