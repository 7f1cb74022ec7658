#!/usr/bin/env python3
"""Cost against size: seconds of the engine's work over tokens, prompts, group size, references and ranks, with the exponent fitted.

    tests/bench/sweep.py [--threads 1] [--repeats 5] [--png docs/cost.png]

Times are the least of the repeats. The exponent is the slope of log seconds over log size, least squares; 1 is linear. Needs torch and
matplotlib (those of tests/bench/compare.py's environment, and matplotlib). Ranks: an iteration's rollout of the miniature with mpirun.
"""
import argparse
import math
import subprocess
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from engine import BUILD, EDIT_IMAGE, MINI, ROOT, Engine


def seconds_of(engine, repeats):
    found = [engine.run() for _ in range(repeats + 1)]
    engine.close()
    return min(found[1:])


def step(directory, arguments, prompts, group, size):
    """A training step of the miniature's transformer."""
    g = torch.Generator().manual_seed(1)
    tokens = size * size
    inputs = {"states": torch.randn(prompts, 24, 96, generator=g), "latents": torch.randn(prompts, group, tokens, 16, generator=g),
              "velocity": torch.randn(prompts, group, tokens, 16, generator=g), "time": torch.rand(prompts, group, generator=g),
              "size": torch.tensor([size, size])}
    return seconds_of(Engine("step", MINI, arguments.threads, directory, inputs), arguments.repeats)


def update(directory, arguments, references):
    engine = Engine("update", MINI, arguments.threads, directory, prompt="add glasses", group=8, image=[EDIT_IMAGE] * references)
    return seconds_of(engine, arguments.repeats)


def rollout(directory, ranks):
    """Wall seconds of a rollout of 16 groups of 8, start and publishing included."""
    run = directory / f"ranks-{ranks}"
    subprocess.run([BUILD / "bin/atelier-plan", "--config", ROOT / "configs/mini.toml", "--run", run, "--set", "curate.prompts=16", "--set",
                    "curate.range_min=0", "--set", "rollout.prompts_per_iteration=16"], check=True, capture_output=True)
    launch = ["mpirun", "--oversubscribe", "-n", str(ranks)]
    subprocess.run(launch + [BUILD / "bin/atelier-curate", "--run", run, "--task", "t2i"], check=True, capture_output=True)
    begin = time.perf_counter()
    subprocess.run(launch + [BUILD / "bin/atelier-rollout", "--run", run, "--policy", "t2i", "--iteration", "1"], check=True, capture_output=True)
    return time.perf_counter() - begin


def exponent(sizes, seconds):
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--png", type=Path, default=ROOT / "docs/cost.png")
    arguments = parser.parse_args()
    subprocess.run(["cmake", "--build", BUILD, "--target", "engine_bench", "atelier-plan", "atelier-curate", "atelier-rollout"], check=True,
                   stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sweeps = {
            "latent tokens (one prompt, group 1)": ([64, 144, 256, 576, 1024], lambda n: step(directory, arguments, 1, 1, math.isqrt(n))),
            "prompts (group 1, 64 tokens)": ([1, 2, 4, 8, 16, 32], lambda n: step(directory, arguments, n, 1, 8)),
            "group size (one prompt, 64 tokens)": ([1, 2, 4, 8, 16, 32], lambda n: step(directory, arguments, 1, n, 8)),
            "prefix: 1 + references (group 8)": ([1, 2, 3, 4], lambda n: update(directory, arguments, n - 1)),
            "ranks (rollout of 16 groups of 8)": ([1, 2], lambda n: rollout(directory, n)),
        }
        figure, axes = plt.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.6))
        print("| over | sizes | seconds | exponent |\n|---|---|---|---|")
        for axis, (title, (sizes, measure)) in zip(axes, sweeps.items()):
            seconds = [measure(n) for n in sizes]
            slope = exponent(sizes, seconds)
            print(f"| {title} | {', '.join(map(str, sizes))} | {', '.join(f'{s:.4f}' for s in seconds)} | {slope:.2f} |", flush=True)
            axis.loglog(sizes, seconds, "o-")
            axis.set_xticks(sizes, [str(s) for s in sizes])
            axis.minorticks_off()
            axis.set_title(f"{title}\nexponent {slope:.2f}", fontsize=9)
            axis.set_ylabel("seconds")
            axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(arguments.png, dpi=90)


main()
