"""A run of the miniature that takes half a minute, its stages, and what must be true of it after anything that happened."""
import argparse
import filecmp
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

source = pathlib.Path(__file__).resolve().parents[2]
prompts = source / "assets/mini/prompts"

SETTINGS = {
    "sampling.steps": 3, "sampling.guidance_scale": 1, "steps.count": 1, "curate.prompts": 3, "curate.group_size": 2, "curate.range_min": 0,
    "rollout.prompts_per_iteration": 3, "rollout.group_size": 2, "rollout.micro_batch": 2, "reward.min_spread": 0, "reward.gate": 0,
    "grpo.iterations": 1, "task.t2i.iterations": 2, "grpo.minibatches": 2, "grpo.learning_rate": 1e-3, "grpo.ema": 0.9,
    "distill.rounds": 2, "distill.prompts": 2, "distill.group_size": 1, "distill.batch": 1, "distill.epochs": 1,
    "pipeline.mix": "false", "pipeline.judge": "true", "checkpoint.every": 1, "storage.keep": "summary",
    "reward_train.batch": 2, "reward_train.epochs": 1, "reward_train.publish_every": 1}

# What a stage may end with (docs/errors.md): done, and the documented kinds of trouble.
DONE, INPUT, IO, BUSY, RANK, REQUEUE = 0, 3, 4, 7, 8, 75


class Wrong(Exception):
    """Something that must hold doesn't."""


def options(text, ranks):
    """The parser of what every harness is told."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True, type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--mpiexec", default="mpiexec")
    parser.add_argument("--ranks", type=int, default=ranks)
    return parser


def random_options(text, kills, of):
    """The same, for those that disturb at random moments; `of`: what has so many kills."""
    parser = options(text, ranks=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kills", type=int, default=kills, help=f"of each {of}")
    parser.add_argument("--calm", type=pathlib.Path, help="directory in which another harness has made its undisturbed run with as many ranks")
    parser.add_argument("--record", help="file that the table is appended to")
    return parser


def environment(**more):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "OMPI_ALLOW_RUN_AS_ROOT": "1",
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo",
           "OMPI_MCA_mpi_yield_when_idle": "1"}
    return {**env, **more}


class Stage:
    def __init__(self, line):
        self.name, self.program, arguments, _, self.output = line.rstrip("\n").split("\t")[:5]
        self.arguments = [] if arguments == "-" else arguments.split()


class Pipeline:
    """Where the programs are and what every run is made from."""

    def __init__(self, programs, mpiexec, work, ranks=1):
        self.programs, self.mpiexec, self.work, self.ranks = pathlib.Path(programs), mpiexec, pathlib.Path(work), ranks
        self.make_inputs()

    def make_inputs(self):
        """Few held-out prompts; labels and a start for the judge."""
        inputs = self.work / "inputs"
        if inputs.exists():
            return
        (inputs / "judge").mkdir(parents=True)
        (inputs / "images").symlink_to(prompts / "images")
        for task in ("t2i", "edit"):
            lines = (prompts / f"{task}-heldout.jsonl").read_text().splitlines()
            (inputs / f"{task}.jsonl").write_text("\n".join(lines[:2]) + "\n")
        for part in ("text_encoder", "processor"):
            for file in (source / "assets/mini/base" / part).iterdir():
                shutil.copy(file, inputs / "judge")
        edits = [json.loads(line) for line in (prompts / "edit-train.jsonl").read_text().splitlines()[:6]]
        for name, part in (("labels", edits[:4]), ("heldout", edits[4:])):
            rows = [{"id": p["id"], "kind": "t2i", "dimension": "alignment", "category": p["category"], "prompt": "a dark background",
                     "picture": p["images"][0], "scores": {"a": 1 + i, "b": 2 + i}, "rationale": "so it is"} for i, p in enumerate(part)]
            (inputs / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (inputs / "templates").mkdir()
        template = (source / "configs/judge/t2i-alignment.toml").read_text()
        (inputs / "templates/t2i-alignment.toml").write_text("reasoning_tokens = 4\n" + template)

    def settings(self, more=()):
        inputs = self.work / "inputs"
        stages = ("curate", "rollout", "grpo", "teacher-dump", "distill", "evaluate", "reward-train")
        all_ = {**SETTINGS, "task.t2i.heldout": inputs / "t2i.jsonl", "task.edit.heldout": inputs / "edit.jsonl",
                "judge.templates": inputs / "templates", "reward_train.start": inputs / "judge", "reward_train.labels": inputs / "labels.jsonl",
                "reward_train.heldout": inputs / "heldout.jsonl", **{f"slurm.{s}.{what}": self.ranks for s in stages for what in ("ranks", "nodes")}, **dict(more)}
        return [text for key, value in all_.items() for text in ("--set", f"{key}={value}")]

    def plan(self, run, more=()):
        subprocess.run([self.programs / "atelier-plan", "--config", "configs/mini.toml", "--run", run, *self.settings(more)], cwd=source,
                       check=True, stdout=subprocess.DEVNULL)
        return self.stages(run)

    @staticmethod
    def stages(run):
        with open(pathlib.Path(run) / "pipeline.tsv") as lines:
            return [Stage(line) for line in lines]

    def command(self, run, stage, ranks=None):
        ranks = ranks or self.ranks
        launcher = [] if ranks == 1 else [self.mpiexec, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        return [*launcher, str(self.programs / f"atelier-{stage.program}"), "--run", str(run), *stage.arguments]

    def start(self, run, stage, env=None, **more):
        """Starts a stage in a process group of its own; what it says goes to RUN/logs/STAGE.log, which is emptied first."""
        with open(pathlib.Path(run) / "logs" / f"{stage.name}.log", "w") as log:
            return subprocess.Popen(self.command(run, stage), cwd=source, env=env or environment(), stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=subprocess.STDOUT, start_new_session=True, **more)

    def run(self, run, stage, env=None, expected=(DONE,), limit=300):
        """The stage's exit code and what it said. A stage that is still being written by ranks of a killed one is tried again."""
        log = pathlib.Path(run) / "logs" / f"{stage.name}.log"
        for _ in range(100):
            process = self.start(run, stage, env)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise Wrong(f"{stage.name} hangs: {log.read_text()}") from None
            if code != BUSY or BUSY in expected:
                break
            time.sleep(0.1)
        said = log.read_text(errors="replace")
        if expected is not None and code not in expected:
            raise Wrong(f"{stage.name} ended with {code}, expected {expected}:\n{said}")
        return code, said

    def verify_stage(self, run, stage):
        """What a killed stage may have touched."""
        output = pathlib.Path(run) / stage.output
        place = output if output.parent == pathlib.Path(run) else output.parent
        for directory in [place] + ([output.parent / "judge-training"] if stage.program == "reward-train" else []):
            if directory.exists():
                self.verify(directory, after_kill=True)

    def verify(self, run, after_kill=False):
        """Every manifest against its files, every shard; after a kill only temporaries may be there besides."""
        found = subprocess.run([self.programs / "atelier-inspect", "--verify", run], capture_output=True, text=True, cwd=source)
        faults = [line for line in found.stdout.splitlines() if not (after_kill and "was left by a killed stage" in line)]
        if after_kill:
            faults = [line for line in faults if not line.endswith("faults")]
        elif faults[-1:] and faults[-1].endswith(" 0 faults"):
            faults = faults[:-1]
        if faults or found.returncode not in ((DONE, INPUT) if after_kill else (DONE,)):
            raise Wrong(f"{run} does not verify: {faults or found.stderr}")


def listing(run):
    """Names of all files of a run, without what differs from run to run (timelines say when, and only of what was sampled)."""
    run = pathlib.Path(run)
    names = {str(p.relative_to(run)) for p in run.rglob("*")}
    return {n for n in names if n.split("/")[0] not in ("logs", "failed", "report", "tb") and not n.endswith((".lock", "jobs.tsv", "timeline.json"))}


def records(run):
    with open(pathlib.Path(run) / "metrics.jsonl") as lines:
        return sorted(lines)


def key(record):
    r = json.loads(record)
    return r["policy"], r["iteration"]


def compare(calm, run, whole=True, under=""):
    """The run is the undisturbed one: weights, optimizer, evaluation, metrics bit for bit; the same files and no others.
    Manifests and shards say when and how long, and stay out of it: what they hold goes into everything after them."""
    calm, run = pathlib.Path(calm), pathlib.Path(run)
    wanted, found = listing(calm), listing(run)
    if whole and wanted != found:
        raise Wrong(f"{run}: missing {sorted(wanted - found)[:5]}, left over {sorted(found - wanted)[:5]}")
    compared = 0
    for name in sorted(n for n in wanted & found if n.startswith(under)):
        kind, file = pathlib.Path(name).suffix, pathlib.Path(name).name
        if kind in (".safetensors", ".json", ".txt", ".png", ".h5") and file not in ("manifest.json", "trajectories.h5") and not file.startswith("shard-"):
            if not filecmp.cmp(calm / name, run / name, shallow=False):
                raise Wrong(f"{run / name} differs from the undisturbed run's")
            compared += 1
    if whole and records(calm) != records(run):
        raise Wrong(f"{run}/metrics.jsonl differs from the undisturbed run's")
    return compared
