#!/usr/bin/env python3
"""Stages struck at every step of their publishing: the n-th write, fsync, rename, ... killed or failed, n swept.

    points.py --programs build/bin --library FAULTS_LIBRARY [--stages NAME,...] [--faults kill,torn,ENOSPC,...] [--every N] [--ranks R] ...

A stage runs undisturbed once, its calls on the run's files are counted; then for each of them (of a row of equal ones on one file the first
and the last) it starts from the same state, is struck there, and is run again. It must end with a documented code and name a file, nothing
published may be wrong, and what the second run makes is what the undisturbed run has, without a temporary left.
"""
import collections
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import harness

WRITING = ("create", "write", "close", "fsync", "rename", "exchange", "unlink", "mkdir")
READING = ("open", "read", "stat", "map")
FITS = {"kill": WRITING, "torn": ("write",), "short": ("write",), "ENOSPC": ("create", "write", "close", "fsync", "mkdir"),
        "EIO": ("create", "write", "close", "fsync", "rename", "exchange", "unlink", "open", "read"), "ESTALE": ("open", "stat", "read", "map", "rename"),
        "EINTR": ("write",)}


def copy(before, to):
    """The same files, as links: programs replace what they publish, they don't write into it."""
    subprocess.run(["cp", "-al", before, to], check=True)
    shutil.rmtree(to / "logs")
    (to / "logs").mkdir()


def listed(log):
    """Calls by kind and number, without the middle of rows."""
    seen, rows = collections.Counter(), []
    for line in log.read_text().splitlines():
        _, call, path = line.split(" ", 2)
        seen[call] += 1
        if len(rows) > 1 and rows[-1][0::2] == rows[-2][0::2] == (call, path):
            rows.pop()
        rows.append((call, seen[call], path))
    return rows


def check_again(pipeline, calm, run, stage):
    pipeline.run(run, stage)
    pipeline.verify_stage(run, stage)
    harness.compare(calm, run, whole=False, under=stage.output)
    for shard in sorted((run / stage.output).rglob("shard-*.h5")):
        other = calm / shard.relative_to(run)
        if other.exists() and subprocess.run(["h5diff", "-q", shard, other, "/shape-8x8/latents"]).returncode != 0:
            raise harness.Wrong(f"{shard} differs from the undisturbed run's")
    left = [p for p in run.rglob("*") if p.name.startswith(".tmp-") or p.name == "updates"]
    if left:
        raise harness.Wrong(f"left over: {left}")
    lost = [r for r in harness.records(calm) if f'"stage":"{stage.program}"' in r and harness.key(r) in stage_keys(stage) and r not in harness.records(run)]
    if lost:
        raise harness.Wrong(f"{stage.name} is complete and has no record in metrics.jsonl")


def stage_keys(stage):
    words = dict(zip(stage.arguments[::2], stage.arguments[1::2]))
    return [(words.get("--policy", words.get("--task", "student" if stage.program == "distill" else "judge")),
             int(words.get("--iteration", words.get("--round", 0))))]


def strike(pipeline, given, before, calm, stage, point, fault, table):
    call, number, path = point
    run, log = pipeline.work / "struck", pipeline.work / "log"
    shutil.rmtree(run, ignore_errors=True)
    log.unlink(missing_ok=True)
    copy(before, run)
    rank = f",rank={given.rank}" if given.rank is not None else ""
    env = harness.environment(LD_PRELOAD=given.library, ATELIER_FAULTS=f"calls={call},at={number},do={fault},path={run}{rank}", ATELIER_FAULTS_LOG=str(log))
    code, said = pipeline.run(run, stage, env, expected=None)
    where = f"{stage.name}: {fault} at {call} {number} ({path})"
    hit = [line for line in log.read_text().splitlines() if line.endswith(" struck")] if log.exists() else []
    if not hit:
        table[fault, stage.program, "not reached"] += 1
        return
    where += f", struck: {hit[0]}"  # threads may take turns in another order
    last = [line for line in said.splitlines() if line.startswith("atelier-")]
    if fault in ("kill", "torn"):
        if code == 0:
            raise harness.Wrong(f"{where}: was killed and ended with 0")
    elif code not in (harness.DONE, harness.IO):
        raise harness.Wrong(f"{where}: ended with {code}: {said[-600:]}")
    elif code != 0 and not any(str(run) in line for line in last):
        raise harness.Wrong(f"{where}: no message names a file: {said[-600:]}")
    pipeline.verify_stage(run, stage)
    check_again(pipeline, calm, run, stage)
    table[fault, stage.program, "killed" if fault in ("kill", "torn") else "refused" if code != 0 else "went on"] += 1
    if given.verbose:
        print(f"  {where} -> {code} {last[-1][:160] if last and code != 0 else ''}", flush=True)


def main():
    options = harness.options(__doc__, ranks=1)
    options.add_argument("--library", required=True)
    options.add_argument("--stages", default="curate-t2i,rollout-edit-0001,grpo-t2i-0002,teacher-dump-t2i-02,distill-02,reward-train,evaluate")
    options.add_argument("--faults", default="kill,torn")
    options.add_argument("--every", type=int, default=1, help="of all points every N-th")
    options.add_argument("--first", type=int, default=0, help="from this one on")
    options.add_argument("--rank", type=int, help="the rank that is struck")
    options.add_argument("--skew", type=int, help="then a whole run, the clock of each rank so many seconds ahead of the one before")
    options.add_argument("--verbose", action="store_true")
    given = options.parse_args()
    given.library = str(pathlib.Path(given.library).resolve())
    wanted, faults = given.stages.split(","), given.faults.split(",")
    work = pathlib.Path(tempfile.mkdtemp(prefix="atelier-points."))
    table = collections.Counter()
    try:
        pipeline = harness.Pipeline(given.programs, given.mpiexec, work, given.ranks)
        calm = work / "calm"
        last = max(i for i, s in enumerate(pipeline.plan(calm)) if s.name in wanted)
        points = []
        for stage in pipeline.stages(calm)[: last + 1]:
            env = None
            if stage.name in wanted:
                before, log = work / f"before-{stage.name}", work / f"calls-{stage.name}"
                copy(calm, before)
                rank = f",rank={given.rank}" if given.rank is not None else ""
                rules = ";".join(f"calls={c},do=count,path={calm}{rank}" for c in WRITING + READING)
                env = harness.environment(LD_PRELOAD=given.library, ATELIER_FAULTS=rules, ATELIER_FAULTS_LOG=str(log))
                pipeline.run(calm, stage, env)
                points += [(stage, before, point, fault) for point in listed(log) for fault in faults
                           if point[0] in FITS[fault] and "/logs/" not in point[2]]
            else:
                pipeline.run(calm, stage)
        pipeline.verify(calm)
        chosen = points[given.first :: given.every]
        print(f"{len(points)} points, {len(chosen)} of them struck", flush=True)
        for stage, before, point, fault in chosen:
            strike(pipeline, given, before, calm, stage, point, fault, table)
        if given.skew:
            run = work / "skewed"
            for stage in pipeline.plan(run)[: last + 1]:
                pipeline.run(run, stage, harness.environment(LD_PRELOAD=given.library, ATELIER_FAULTS_CLOCK=str(given.skew)))
            pipeline.verify(run)
            print(f"clocks {given.skew} s apart from rank to rank: {harness.compare(calm, run)} files as undisturbed", flush=True)
    except harness.Wrong as wrong:
        print(f"FAILED: {wrong}\nkept: {work}", file=sys.stderr)
        return 1
    finally:
        print("| fault | stage | outcome | times |\n|---|---|---|---|")
        for (fault, stage, outcome), n in sorted(table.items()):
            print(f"| {fault} | {stage} | {outcome} | {n} |")
    shutil.rmtree(work)
    if all(outcome == "not reached" for _, _, outcome in table):
        print("FAILED: no point was reached", file=sys.stderr)
        return 1
    print("struck stages: all as undisturbed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
