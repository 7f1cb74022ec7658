#!/usr/bin/env python3
"""Where the seconds of a run through Slurm went.   job_times.py RUN

For each stage: jobs and their seconds in all; and of each job, median and largest, its seconds; the queue (from when what it waited for had
ended and a node was free until its script began); the start (script to first step: programs, MPI, weights); the end (last step to the
script's end: what is left to write, index, manifest, metrics). First and last steps are those of timeline.json, where a stage has one. Of a
run on the file system where it was made: when a job began is its log's birth.
"""
import csv
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path


def birth(path):
    return float(subprocess.run(["stat", "-c", "%.W", path], capture_output=True, text=True, check=True).stdout)


def nodes_of(log):
    """Names of the nodes that a job says it runs on: "n[0-1]", "n1"."""
    found = re.search(r" on (\w+)(?:\[([\d,-]+)\])?,", log.read_text(errors="replace"))
    name, ranges = found.groups()
    if not ranges:
        return {name}
    return {f"{name}{i}" for part in ranges.split(",") for i in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)}


def main():
    run = Path(sys.argv[1])
    jobs = {}
    with open(run / "pipeline.tsv") as file:
        for name, stage, _, waits, output, *_ in csv.reader(file, delimiter="\t"):
            log = run / "logs" / f"{name}.log"
            job = {"stage": stage, "waits": [] if waits == "-" else waits.split(","), "begin": birth(log), "end": log.stat().st_mtime, "nodes": nodes_of(log)}
            timeline = run / output / "timeline.json"
            if timeline.exists():
                events = json.loads(timeline.read_text())
                spans = [e for e in (events["traceEvents"] if isinstance(events, dict) else events) if e.get("ph") == "X"]
                job["start"] = min(e["ts"] for e in spans) / 1e6 - job["begin"]
                job["finish"] = job["end"] - max(e["ts"] + e["dur"] for e in spans) / 1e6
            jobs[name] = job
    first = min(j["begin"] for j in jobs.values())
    for job in jobs.values():
        free = [max((o["end"] for o in jobs.values() if node in o["nodes"] and o["end"] <= job["begin"]), default=first) for node in job["nodes"]]
        job["queue"] = job["begin"] - max([first] + free + [jobs[w]["end"] for w in job["waits"]])
        job["seconds"] = job["end"] - job["begin"]
    last = max(j["end"] for j in jobs.values())
    print(f"{len(jobs)} jobs, {last - first:.0f} s from the first job's start to the last one's end, {sum(j['queue'] for j in jobs.values()):.1f} s of queue in all\n")
    columns = ["seconds", "queue", "start", "finish"]
    print("| stage | jobs | seconds in all | " + " | ".join(columns) + " |\n|---|---|---|" + "---|" * len(columns))
    for stage in dict.fromkeys(j["stage"] for j in jobs.values()):
        mine = [j for j in jobs.values() if j["stage"] == stage]
        cells = []
        for column in columns:
            values = [j[column] for j in mine if column in j]
            cells.append(f"{statistics.median(values):.2f}, {max(values):.2f}" if values else "–")
        print(f"| {stage} | {len(mine)} | {sum(j['seconds'] for j in mine):.0f} | " + " | ".join(cells) + " |")


main()
