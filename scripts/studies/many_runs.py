"""What commands cost with thousands of runs: planning, freezing, listing, cancelling, reporting and completing them.

The sweep is five models at 24 widths with 42 seeds, 5,040 runs of two epochs on Fashion-MNIST. None is trained: they
are frozen and submitted as held jobs, cancelled, and given made-up results. Each command is a process of its own, and
its row has its wall time, its CPU seconds with those of the processes that it started, and the memory of the largest of
them.

From the root of the repository, in some minutes:

    python -m scripts.studies.many_runs [--widths 24] [--seeds 42] [--slurm]

Slurm's commands are stand-ins that answer at once, so the time is the program's own. ``--slurm`` submits to the Slurm
that is there, held, and the command ``cancel`` takes all of it out again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixersweep.runs import RunDirectory, Status, read_status, set_status
from mixersweep.runs.files import write_json
from mixersweep.runs.state import State
from tests.runs.synthetic import record_of, row_of

MODELS = ("s_mixer", "rp_s_mixer", "pk", "sw_mlp", "hashed")
WIDTHS = (
    *(1020, 1251, 1440, 1595, 1758, 1890, 2008, 2124, 2240, 2354, 2436, 2522),
    *(2604, 2685, 2768, 2839, 2916, 2983, 3060, 3168, 3264, 3380, 3472, 3540),
)
"""Widths to ask for whose nearest networks all differ."""
SETTINGS = ("data=fashion_mnist", "connections=2**18", "depth=2", "epochs=2", "match=mixer", "tracking=none")
JOBS = 12
IMAGES = 10_000

STAND_INS = {
    "sbatch": """array=$(($(cat count 2> /dev/null || echo 0) + 1))
echo $array > count
name=$(sed -n 's/^#SBATCH --job-name=//p' "$2")
last=$(sed -n 's/^#SBATCH --array=0-//p' "$2")
for index in $(seq 0 "$last"); do echo "$array|$index|PENDING|JobHeldUser|$name"; done >> jobs
echo $array""",
    "squeue": "touch jobs && cat jobs",
    "scancel": ": > jobs",
    "scontrol": "echo 'MaxArraySize = 1001'",
    "srun": "exit 1",
}
"""Scripts that take the place of Slurm's commands, each in the folder that it lies in."""

MEASURE = """import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=2)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), *seconds, 1024 * usage.ru_maxrss]))"""
"""A small process that starts a command, whose peak would otherwise be at least the memory of this one."""

COMPLETION = "import os, sys\nos.dup2(1, 8)\nos.execv(sys.executable, [sys.executable, '-m', 'mixersweep'])"


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds by the clock and of CPU, and the bytes of its largest process."""

    command: str
    wall: float
    cpu: float
    peak: float

    def __str__(self) -> str:
        return f"{self.command:<26}{self.wall:>9.2f}{self.cpu:>9.2f}{self.peak / 1e6:>10.0f}"


HEADER = f"{'command':<26}{'wall s':>9}{'CPU s':>9}{'peak MB':>10}"


class Folder:
    """An empty folder to run commands in; ``environment`` is added to theirs."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path, self.environment = path, environment
        self.runs = path / "runs"

    def run(self, name: str, *arguments: str) -> Cost:
        """Run ``mixersweep ARGUMENTS`` and return its cost; exits where it fails."""
        return self._measure(name, ["-m", "mixersweep", *arguments], {})

    def complete(self, name: str, line: str) -> Cost:
        """Ask for completions of a command line, as a shell does."""
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        return self._measure(name, ["-c", COMPLETION], {**asked, "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n"})

    def _measure(self, name: str, arguments: Sequence[str], environment: dict[str, str]) -> Cost:
        outer = {name: value for name, value in os.environ.items() if not name.startswith("MIXERSWEEP_")}
        known = {**outer, **self.environment, **environment}
        command = [sys.executable, "-c", MEASURE, sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.path, env=known, capture_output=True, text=True, check=True)
        code, wall, cpu, peak = json.loads(done.stdout)
        if code or not done.stderr.strip():
            raise SystemExit(f"{name}: exit code {code}\n{done.stderr[-2000:]}")
        return Cost(name, wall, cpu, peak)


def costs(folder: Folder, widths: Sequence[int], seeds: int) -> Iterator[Cost]:
    """Yield the cost of each command in turn."""
    grid = [f"model={','.join(MODELS)}", f"width={','.join(map(str, widths))}", f"seed=range({seeds})"]
    total = len(MODELS) * len(widths) * seeds
    jobs = [f"hydra.launcher.runs_per_job={-(-total // JOBS)}", "hydra.launcher.sbatch={hold:true}"]
    sweep = [*grid, *SETTINGS, "sweep.name=many", "hydra/launcher=slurm", "hydra.launcher.wait=false", *jobs]
    yield folder.run("plan, all new", "plan", "-m", *sweep)
    yield folder.run("freeze and submit", "train", "-m", *sweep)
    _check(folder.runs, State.QUEUED, total)
    yield folder.run("plan, all queued", "plan", "-m", *sweep)
    yield folder.run("status, all queued", "status")
    yield folder.run("cancel", "cancel", "--state", "queued")
    _check(folder.runs, State.CANCELLED, total)
    make_up_results(folder.runs)
    _check(folder.runs, State.COMPLETED, total)
    yield folder.run("status, all completed", "status")
    yield folder.run("status --json", "status", "--json")
    yield folder.run("report", "report")
    yield folder.complete("completion of a run", "mixersweep logs s_mixer-")


def _check(runs_dir: Path, state: State, count: int) -> None:
    found = [read_status(path).state for path in runs_dir.glob("[!.]*")]
    if found != [state] * count:
        raise SystemExit(f"{found.count(state)} of {count} runs are {state}")


def make_up_results(runs_dir: Path) -> None:
    """Give each run the results of a training that never was; no model or width is better than another."""
    labels = np.random.default_rng(0).integers(0, 10, IMAGES).astype(np.int32)
    for number, path in enumerate(sorted(runs_dir.glob("[!.]*"))):
        directory = RunDirectory.open(path)
        draw = np.random.default_rng(number)
        correct = draw.random(IMAGES) < 0.8 + draw.normal(0, 0.004)
        prediction = np.where(correct, labels, (labels + 1) % 10).astype(np.int32)
        probability = np.where(correct, 0.8, 0.1).astype(np.float32)
        stored = {"prediction": prediction, "probability_of_label": probability, "label": labels}
        np.savez_compressed(path / "predictions.npz", **stored)
        for epoch in range(1, directory.run.config.epochs + 1):
            directory.append_row(row_of(directory.run, epoch, float(correct.mean())))
        write_json(path / "result.json", record_of(directory.run, float(correct.mean())))
        set_status(path, Status(State.COMPLETED))


def main(arguments: Sequence[str]) -> None:
    """Run the study as a command."""
    parser = argparse.ArgumentParser(description="What commands cost with thousands of runs.")
    parser.add_argument("--widths", type=int, default=len(WIDTHS), help="of each of the five models (24)")
    parser.add_argument("--seeds", type=int, default=42, help="of each model and width (42)")
    parser.add_argument("--slurm", action="store_true", help="submit held jobs to the Slurm that is here")
    options = parser.parse_args(arguments)
    if not 1 <= options.widths <= len(WIDTHS) or options.seeds < 1:
        parser.error(f"--widths {options.widths} --seeds {options.seeds}: 1 to {len(WIDTHS)} widths, 1 seed or more")
    widths = WIDTHS[: options.widths]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {}
        if not options.slurm:
            for name, text in STAND_INS.items():
                (Path(scratch) / name).write_text(f"#!/bin/sh\ncd {scratch}\n{text}\n")
                (Path(scratch) / name).chmod(0o755)
            environment = {"PATH": f"{scratch}{os.pathsep}{os.environ['PATH']}"}
        work = Path(scratch) / "work"
        work.mkdir()
        print(f"{len(MODELS) * len(widths) * options.seeds} runs\n{HEADER}", flush=True)
        for cost in costs(Folder(work, environment), widths, options.seeds):
            print(cost, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
