#!/usr/bin/env python3
"""Kills stages of a run at random moments, lets the run go on, and compares what it ends with with an undisturbed run.

    kills.py --programs build/bin [--mpiexec mpiexec] [--seed S] [--runs N] [--kills K] [--ranks R] [--record FILE]

Directly, without Slurm: each stage of each run is started again and again, K times killed at a moment drawn uniformly from the time it
takes, then left to finish. After every kill every published file is checked; in the end weights, optimizer states' weights, evaluation
and metrics are compared bit for bit, and the lists of files. Kinds:
    KILL      the launcher and all ranks         launcher  the launcher only: ranks find out by themselves
    rank      one rank only                      TERM      all ranks: publish what is complete, code 75
    USR1      the launcher, which passes it on   twice     TERM, and KILL a moment later
"""
import collections
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import harness


def ranks_of(launcher, alone):
    if alone:
        return [launcher.pid]
    children = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    if stat.read().rsplit(")", 1)[1].split()[1] == str(launcher.pid):
                        children.append(int(entry))
            except OSError:
                pass
    return children


def send(pid, what):
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass


def wait_for(ranks):
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in ranks) and time.monotonic() < end:
        time.sleep(0.02)


def disturb(process, kind, alone, draw):
    ranks = ranks_of(process, alone)
    if kind == "KILL":
        for pid in [process.pid, *ranks]:
            send(pid, signal.SIGKILL)
    elif kind == "launcher":
        send(process.pid, signal.SIGKILL)
    elif kind == "rank":
        if ranks:
            send(draw.choice(ranks), signal.SIGKILL)
    elif kind == "USR1":
        send(process.pid, signal.SIGUSR1)
    else:
        for pid in ranks:
            send(pid, signal.SIGTERM)
        if kind == "twice":
            time.sleep(draw.random() * 0.1)
            for pid in [process.pid, *ranks]:
                send(pid, signal.SIGKILL)


def one_run(pipeline, run, calm, seconds, kills, draw, table):
    alone = pipeline.ranks == 1
    kinds = ["KILL", "TERM", "USR1", "twice"] if alone else ["KILL", "launcher", "rank", "TERM", "USR1", "twice"]
    for stage in pipeline.plan(run):
        for _ in range(kills):
            kind, moment = draw.choice(kinds), draw.random()
            begin = time.monotonic()
            while True:
                process = pipeline.start(run, stage)
                try:
                    process.wait(seconds[stage.name] * moment)
                except subprocess.TimeoutExpired:
                    pass
                if process.poll() != harness.BUSY or time.monotonic() - begin > 60:
                    break
            was_running = process.poll() is None
            if not was_running:  # the machine is faster than it was
                seconds[stage.name] = min(seconds[stage.name], time.monotonic() - begin)
            ranks = ranks_of(process, alone)
            if was_running:
                disturb(process, kind, alone, draw)
            try:
                code = process.wait(120)
                wait_for(ranks)  # the launcher may be gone before them
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise harness.Wrong(f"{stage.name} goes on two minutes after {kind}") from None
            outcome = "was over" if not was_running else "finished" if code == 0 else "asked again" if code == harness.REQUEUE else "died"
            table[kind, stage.program, outcome] += 1
            print(f"  {kind:8} {stage.name:20} at {moment:.3f}: {outcome} ({code})", flush=True)
            pipeline.verify_stage(run, stage)
        begin = time.monotonic()
        pipeline.run(run, stage)
        seconds[stage.name] = time.monotonic() - begin
    pipeline.verify(run)
    print(f"  {harness.compare(calm, run)} files are the undisturbed run's, bit for bit", flush=True)


def undisturbed(pipeline, run):
    """Makes it, and measures each stage."""
    seconds = {}
    for stage in pipeline.plan(run):
        begin = time.monotonic()
        pipeline.run(run, stage)
        seconds[stage.name] = time.monotonic() - begin
    pipeline.verify(run)
    return seconds


def show(table, out=sys.stdout):
    stages = sorted({s for _, s, _ in table})
    outcomes = ["died", "asked again", "finished", "was over"]
    print("| kind | stage | " + " | ".join(outcomes) + " |\n|---|---|" + "---|" * len(outcomes), file=out)
    for kind in sorted({k for k, _, _ in table}):
        for stage in stages:
            row = [table[kind, stage, o] for o in outcomes]
            if sum(row):
                print(f"| {kind} | {stage} | " + " | ".join(str(n) for n in row) + " |", file=out)


def main():
    given = harness.random_options(__doc__, kills=1, of="stage").parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="atelier-kills."))
    table = collections.Counter()
    try:
        pipeline = harness.Pipeline(given.programs, given.mpiexec, given.calm or work, given.ranks)
        calm = pipeline.work / "calm"
        if given.calm:
            seconds = {stage.name: 2.0 for stage in pipeline.stages(calm)}
        else:
            seconds = undisturbed(pipeline, calm)
            print(f"undisturbed: {sum(seconds.values()):.1f} s", flush=True)
        for number in range(given.runs):
            seed = given.seed + number
            print(f"seed {seed}, {given.ranks} rank(s)", flush=True)
            run = work / f"seed-{seed}"
            one_run(pipeline, run, calm, seconds, given.kills, random.Random(seed), table)
            shutil.rmtree(run)
    except harness.Wrong as wrong:
        print(f"FAILED: {wrong}\nkept: {work}", file=sys.stderr)
        return 1
    finally:
        show(table)
        if given.record:
            with open(given.record, "a") as out:
                show(table, out)
    shutil.rmtree(work)
    struck = sum(n for (_, _, outcome), n in table.items() if outcome != "was over")
    print(f"kills: {struck} of running stages, all runs as undisturbed")
    return 0 if struck else 1


if __name__ == "__main__":
    sys.exit(main())
