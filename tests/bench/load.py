#!/usr/bin/env python3
"""Processor time and memory of large runs against their size.   load.py PROGRAMS [--pool N,...] [--shards N,...] [--samples N,...]

Pools of N prompts curated by atelier-curate from groups of a policy that pretends (tests/bench/load.cpp), and listed by the next stage;
N shards of 8 samples, and shards of 1,000 up to N samples in all, indexed and inspected. Prints seconds of processor time, MiB of
resident memory at the peak, and the exponent of each between the smallest and the largest size.
"""
import argparse
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def measured(command):
    """(seconds of processor time, MiB at the peak) of a program that must succeed."""
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command} failed: {error.decode()[-500:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def table(name, rows):
    print(f"\n{name}\n| size | " + " | ".join(f"{k}: s, MiB" for k in rows[0][1]) + " |\n|---|" + "---|" * len(rows[0][1]))
    for size, columns in rows:
        print(f"| {size:,} | " + " | ".join(f"{s:.2f}, {m:.0f}" for s, m in columns.values()) + " |", flush=True)
    if len(rows) > 1:
        ratio = math.log(rows[-1][0] / rows[0][0])
        print("| exponent | " + " | ".join(
            ", ".join(f"{math.log(rows[-1][1][k][i] / rows[0][1][k][i]) / ratio:.2f}" for i in (0, 1)) for k in rows[0][1]) + " |", flush=True)


def pool(programs, work, size):
    run, prompts = work / "run", work / "pool.jsonl"
    shutil.rmtree(run, ignore_errors=True)
    columns = {"write": measured([programs / "load", "prompts", size, prompts])}
    subprocess.run([programs / "atelier-plan", "--config", "configs/mini.toml", "--run", run, "--set", f"task.t2i.train={prompts}", "--set",
                    "curate.prompts=0", "--set", "curate.group_size=4", "--set", "sampling.guidance_scale=1", "--set",
                    "rollout.prompts_per_iteration=2", "--set", "rollout.group_size=2", "--set", "rollout.micro_batch=2", "--set",
                    "sampling.steps=2", "--set", "steps.count=1", "--set", "reward.max_absent=1"], check=True, stdout=subprocess.DEVNULL)
    columns["draw"] = measured([programs / "load", "groups", run, "t2i"])
    columns["atelier-curate"] = measured([programs / "atelier-curate", "--run", run, "--task", "t2i"])
    columns["atelier-inspect"] = measured([programs / "atelier-inspect", run / "prompts/t2i.h5"])
    columns["atelier-rollout of 2 prompts"] = measured([programs / "atelier-rollout", "--run", run, "--policy", "t2i", "--iteration", 1])
    print(subprocess.run([programs / "atelier-inspect", run / "prompts/t2i.h5"], capture_output=True, text=True).stdout.splitlines()[0])
    return columns


def shards(programs, work, count, each):
    directory = work / "shards"
    shutil.rmtree(directory, ignore_errors=True)
    return {"write": measured([programs / "load", "shards", directory, count, each]), "index": measured([programs / "load", "index", directory]),
            "inspect": measured([programs / "atelier-inspect", directory]),
            "inspect --verify": measured([programs / "atelier-inspect", "--verify", directory])}


def main():
    sizes = lambda text: [int(n) for n in text.split(",") if n]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("programs", type=lambda p: pathlib.Path(p).resolve())
    options.add_argument("--pool", type=sizes, default=[1000, 10000, 100000])
    options.add_argument("--shards", type=sizes, default=[1000, 4000, 16000])
    options.add_argument("--samples", type=sizes, default=[10000, 100000, 1000000])
    given = options.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="atelier-load."))
    try:
        if given.samples:
            table("shards of 1,000 samples, size in samples", [(n, shards(given.programs, work, n // 1000, 1000)) for n in given.samples])
        if given.shards:
            table("shards of 8 samples, size in shards", [(n, shards(given.programs, work, n, 8)) for n in given.shards])
        if given.pool:
            table("pools, size in prompts", [(n, pool(given.programs, work, n)) for n in given.pool])
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
