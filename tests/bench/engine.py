"""engine_bench as a process: what tests/bench/compare.py and sweep.py share."""
import os
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ATELIER_BUILD_DIR", ROOT / "build"))
MINI = ROOT / "assets/mini/base"
EDIT_IMAGE = ROOT / "assets/mini/prompts/images/edit-0001.png"


class Engine:
    """One piece of work, prepared. `inputs`: tensors by name, or lines of text; an option that is a list is given once for each of its values."""

    def __init__(self, work, model, threads, directory, inputs=None, **options):
        self.outputs = directory / f"{work}-outputs.safetensors"
        command = [BUILD / "bin/engine_bench", "--work", work, "--model", model, "--threads", threads, "--outputs", self.outputs]
        if isinstance(inputs, dict):
            file = directory / f"{work}-inputs.safetensors"
            save_file(inputs, file)
            command += ["--inputs", file]
        elif inputs is not None:
            file = directory / f"{work}-inputs.txt"
            file.write_text("\n".join(inputs) + "\n")
            command += ["--inputs", file]
        for name, values in options.items():
            for value in values if isinstance(values, list) else [values]:
                command += [f"--{name}", value]
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.expect("ready")

    def answer(self):
        line = self.process.stdout.readline().strip()
        if not line:
            sys.exit(f"engine_bench ended with {self.process.wait()}")
        return line

    def expect(self, word):
        found = self.answer()
        assert found == word, found

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def run(self):
        """Does the work once; its seconds."""
        self.ask("run")
        return float(self.answer())

    def processor_seconds(self):
        """Seconds of processor time of one run, all threads together: what other work on the machine leaves alone."""
        clock = (~self.process.pid << 3) | 2  # CPUCLOCK_SCHED of that process, as clock_getcpuclockid(3) makes it
        begin = time.clock_gettime(clock)
        self.run()
        return time.clock_gettime(clock) - begin

    def result(self):
        self.ask("write")
        self.expect("written")
        return load_file(self.outputs)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
