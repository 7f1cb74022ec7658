#!/usr/bin/env python3
"""Cost against size: processor seconds of the engine's work over tokens, prompts, group size, references and ranks, with the exponents.

    tests/bench/sweep.py [--threads 1] [--repeats 7] [--png docs/cost.png]

Processor time, medians of the repeats, so that other work on the machine spoils little; the load is printed with the table. Exponents:
the slope of log seconds over log size, least squares over all sizes, and between the two largest; 1 is linear. Needs torch, safetensors
and matplotlib, and what was built with tests. Ranks: a rollout of the miniature under mpirun; the processor time of the rank that
waited least, since ranks wait for each other by asking again and again.
"""
import argparse
import math
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from engine import BUILD, EDIT_IMAGE, MINI, ROOT, Engine


def seconds_of(engine, repeats):
    """The first run takes its memory and is left out."""
    found = [engine.processor_seconds() for _ in range(repeats + 1)][1:]
    engine.close()
    return statistics.median(found)


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


def rollout(directory, arguments, ranks):
    """A rollout of 16 groups of 8: start, sampling, scores and publishing."""
    run = directory / f"ranks-{ranks}"
    programs = BUILD / "bin"
    subprocess.run([programs / "atelier-plan", "--config", ROOT / "configs/mini.toml", "--run", run, "--set", "curate.enabled=false", "--set",
                    "rollout.prompts_per_iteration=16", "--set", "storage.keep=all"], check=True, capture_output=True)
    times = directory / "times"
    timed = f'TIMEFORMAT="%U %S"; {{ time "$@" >/dev/null 2>"{directory}/log"; }} 2>"{times}.$OMPI_COMM_WORLD_RANK"'
    found = []
    for _ in range(arguments.repeats):
        shutil.rmtree(run / "t2i", ignore_errors=True)
        result = subprocess.run(["mpirun", "--oversubscribe", "-n", str(ranks), "bash", "-c", timed, "rank", programs / "atelier-rollout",
                                 "--run", run, "--policy", "t2i", "--iteration", "1"], capture_output=True)
        if result.returncode != 0:
            raise SystemExit(f"atelier-rollout on {ranks} ranks failed: {(directory / 'log').read_text()[-500:]}")
        found.append(min(sum(map(float, Path(f"{times}.{r}").read_text().split())) for r in range(ranks)))
    return statistics.median(found)


def slope(sizes, seconds):
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def plot(rows, png):
    """A panel for each (title, sizes, seconds); dashed: in proportion to the size."""
    figure, axes = plt.subplots(1, len(rows), figsize=(3 * len(rows), 3.2), squeeze=False)
    for axis, (title, sizes, seconds) in zip(axes[0], rows):
        total, last = slope(sizes, seconds), slope(sizes[-2:], seconds[-2:])
        axis.loglog(sizes, seconds, "o-")
        axis.loglog(sizes, [seconds[-1] * (n / sizes[-1]) ** (-1 if total < 0 else 1) for n in sizes], "--", color="gray", linewidth=1)
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.minorticks_off()
        axis.set_title(f"{title}\nexponent {total:.2f}, at the end {last:.2f}", fontsize=9)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("processor seconds")
    figure.tight_layout()
    figure.savefig(png, dpi=70)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--png", type=Path, default=ROOT / "docs/cost.png", help="drawn anew after each sweep")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sweeps = {
            "latent tokens\n(training step, one prompt)": ([64, 144, 256, 576, 1024], lambda n: step(directory, arguments, 1, 1, math.isqrt(n))),
            "prompts\n(training step, 64 tokens)": ([1, 2, 4, 8, 16, 32], lambda n: step(directory, arguments, n, 1, 8)),
            "group size\n(training step, one prompt)": ([1, 2, 4, 8, 16, 32], lambda n: step(directory, arguments, 1, n, 8)),
            "references + 1\n(GRPO update, group of 8)": ([1, 2, 3, 4], lambda n: update(directory, arguments, n - 1)),
            "ranks\n(rollout of 16 groups of 8)": ([1, 2, 4], lambda n: rollout(directory, arguments, n)),
        }
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the beginning")
        print("| over | sizes | processor seconds | exponent | between the two largest |\n|---|---|---|---|---|")
        rows = []
        for title, (sizes, measure) in sweeps.items():
            seconds = [measure(n) for n in sizes]
            rows.append((title, sizes, seconds))
            print(f"| {title.replace(chr(10), ' ')} | {', '.join(map(str, sizes))} | {', '.join(f'{s:.3g}' for s in seconds)} | "
                  f"{slope(sizes, seconds):.2f} | {slope(sizes[-2:], seconds[-2:]):.2f} |", flush=True)
            plot(rows, arguments.png)
        print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
