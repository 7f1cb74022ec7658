#!/usr/bin/env python3
"""Disturbs the jobs of a run in a private Slurm at random moments; what it ends with is compared with an undisturbed run.

    slurm_kills.py --programs build/bin [--mpiexec mpiexec] [--seed S] [--runs N] [--kills K] [--ranks R] [--record FILE]

Every stage runs on R ranks on R nodes (--ranks, default 2). K times a run, after a wait drawn from 0.2 to 2.5 s, one of the running jobs meets:
    KILL        SIGKILL to all its ranks              rank        to one of them
    TERM, USR1  to the job's script                   requeue     scontrol requeue
    controller  slurmctld is killed with SIGKILL and started again up to two seconds later
A run whose queue is empty before it is complete is submitted again with pipeline.sh --run, as a user would. (The undisturbed run is made
without Slurm: it has the same bits.) Exit code 77: no Slurm is installed.
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
from kills import show, undisturbed

KINDS = ["KILL", "rank", "TERM", "USR1", "requeue", "controller"]


class Cluster:
    def __init__(self, work, programs):
        self.directory, self.programs, self.missing = work / "c", programs, {}
        self.env = harness.environment(ATELIER_CLUSTER_DIR=str(self.directory), ATELIER_CLUSTER_NODES="2", ATELIER_CLUSTER_MEMORY="4000", ATELIER_LAUNCHER_PATIENCE="20",
                                       ATELIER_BIN=str(programs), SLURM_CONF=str(self.directory / "slurm.conf"),
                                       OMPI_MCA_hwloc_base_binding_policy="none")
        self.env["PATH"] += ":/usr/sbin:/sbin"

    def script(self, action):
        subprocess.run(["slurm/local-cluster.sh", action], cwd=harness.source, env=self.env, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    def ask(self, *command):
        """A command of Slurm's; tried until the controller answers."""
        for _ in range(60):
            done = subprocess.run(command, env=self.env, capture_output=True, text=True, cwd=harness.source)
            if done.returncode == 0:
                return done.stdout
            time.sleep(0.5)
        raise harness.Wrong(f"{command}: {done.stderr}")

    def jobs(self, state=()):
        return [line.split() for line in self.ask("squeue", "-h", "-o", "%i %j", *state).splitlines()]

    def submit(self, run):
        self.ask("slurm/pipeline.sh", "--run", str(run))

    def administer(self):
        """A controller that dies forgets its last seconds. A job that it starts twice is refused by its node, which Slurm drains, and held:
        an administrator takes both back. A job that it believes running and that has ended is put back into the queue."""
        for line in self.ask("sinfo", "-h", "-N", "-o", "%N %T").splitlines():
            node, state = line.split()
            if state.startswith("drain"):
                self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        for line in self.ask("squeue", "-h", "-t", "PD", "-o", "%i %r").splitlines():
            if "held" in line:
                self.ask("scontrol", "release", line.split()[0])
        scripts = " ".join(self.command_lines())
        for job, _ in self.jobs(["-t", "R"]):
            there = f"job{int(job):05}/slurm_script" in scripts
            since = self.missing.setdefault(job, time.monotonic()) if not there else self.missing.pop(job, None)
            if not there and time.monotonic() - since > 15:
                del self.missing[job]
                subprocess.run(["scontrol", "requeue", job], env=self.env, capture_output=True)

    @staticmethod
    def command_lines():
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                yield pathlib.Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")
            except OSError:
                pass

    def kill_controller(self, draw):
        pid_file = self.directory / "run/slurmctld.pid"
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        time.sleep(draw.uniform(0, 2))
        for _ in range(20):  # its port may still be taken
            if subprocess.run(["slurmctld"], env=self.env, capture_output=True).returncode == 0:
                return
            time.sleep(0.5)
        raise harness.Wrong("the controller does not start again")

    def ranks(self, run, program):
        wanted, found = [str(self.programs / f"atelier-{program}"), "--run", str(run)], []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if pathlib.Path(f"/proc/{entry}/cmdline").read_text().split("\0")[:3] == wanted:
                    found.append(int(entry))
            except OSError:
                pass
        return found


def disturb(cluster, run, stage, job, kind, draw):
    """Whether something was there to disturb."""
    if kind in ("KILL", "rank"):
        ranks = cluster.ranks(run, stage.program)
        if not ranks:
            return False
        for pid in ranks if kind == "KILL" else [draw.choice(ranks)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    elif kind == "controller":
        cluster.kill_controller(draw)
    else:
        command = ["scontrol", "requeue", job] if kind == "requeue" else ["scancel", "--batch", f"--signal={kind}", job]
        return subprocess.run(command, env=cluster.env, capture_output=True).returncode == 0
    return True


def one_run(pipeline, cluster, run, calm, kills, draw, table):
    stages = {s.name: s for s in pipeline.plan(run)}
    complete = run / stages["evaluate"].output / "manifest.json"
    cluster.submit(run)
    met = collections.Counter()  # a stage is met twice at most, so that all have their turn
    left, submissions, end = kills, 1, time.monotonic() + 3600
    while time.monotonic() < end:
        if not cluster.jobs():
            if complete.exists():
                break
            submissions += 1
            if submissions > kills + 3:
                raise harness.Wrong(f"{run} does not go on: {[p.read_text() for p in (run / 'failed').glob('*.txt')]}")
            cluster.submit(run)
        cluster.administer()
        time.sleep(draw.uniform(0.2, 2.5) if left > 0 else 0.5)
        running = cluster.jobs(["-t", "R"])
        if left > 0 and running:
            job, name = draw.choice(running)
            kind = draw.choice(KINDS)
            if met[name] < 2 and disturb(cluster, run, stages[name], job, kind, draw):
                left -= 1
                met[name] += 1
                table[kind, stages[name].program, "died" if kind in ("KILL", "rank") else "asked again" if kind != "controller" else "finished"] += 1
                print(f"  {kind:10} {name}", flush=True)
    else:
        raise harness.Wrong(f"{run} is not complete after an hour")
    pipeline.verify(run)
    print(f"  {kills - left} disturbances, {submissions} submissions; {harness.compare(calm, run)} files are the undisturbed run's, bit for bit", flush=True)


def main():
    given = harness.random_options(__doc__, kills=12, of="run").parse_args()
    if not shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        print("skipped: slurmctld is not installed (scripts/setup.sh slurm)")
        return 77
    work = pathlib.Path(tempfile.mkdtemp(prefix="atelier-slurm-kills.", dir="/tmp"))  # short: socket paths end at 107 characters
    table = collections.Counter()
    cluster = Cluster(work, given.programs)
    try:
        pipeline = harness.Pipeline(given.programs, given.mpiexec, given.calm or work, given.ranks)
        calm = pipeline.work / "calm"
        if not given.calm:
            print(f"undisturbed: {sum(undisturbed(pipeline, calm).values()):.1f} s", flush=True)
        cluster.script("start")
        for number in range(given.runs):
            print(f"seed {given.seed + number}", flush=True)
            run = work / f"seed-{given.seed + number}"
            one_run(pipeline, cluster, run, calm, given.kills, random.Random(given.seed + number), table)
            shutil.rmtree(run)
    except harness.Wrong as wrong:
        print(f"FAILED: {wrong}\nkept: {work}", file=sys.stderr)
        return 1
    finally:
        cluster.script("stop")
        show(table)
        if given.record:
            with open(given.record, "a") as out:
                show(table, out)
    shutil.rmtree(work)
    print(f"disturbances: {sum(table.values())}, all runs as undisturbed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
