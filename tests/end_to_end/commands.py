"""The command as people and schedulers run it: real processes, real signals, real files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.speed import HANGS

COMMAND = (sys.executable, "-m", "mixersweep")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
TIMES = ("time", "seconds", "images_per_second")
PROBES = ("probes=[spectrum,sparsity,gradient_norm,activation_rank]", "probe_every=3")


def new_home(tmp_path: Path) -> dict[str, str]:
    """The environment of a new machine: a home of its own and no key."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MIXERSWEEP_"))}
    return {**kept, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


class Commands:
    """Runs and starts commands in a folder; processes that are still there at the end are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, new_home(folder)
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, program: tuple[str, ...] = COMMAND) -> subprocess.CompletedProcess[str]:
        """Run to its end."""
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=HANGS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str, program: tuple[str, ...] = COMMAND) -> subprocess.Popen[str]:
        """Start in a process group of its own."""
        process = subprocess.Popen(
            [*program, *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def torchrun(self, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same in several processes."""
        return self.run(*arguments, program=torchrun(processes))

    def close(self) -> None:
        """End what a failed test left."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def torchrun(processes: int) -> tuple[str, ...]:
    """How to start a run in several processes."""
    return (*TORCHRUN, f"--nproc-per-node={processes}", "-m", "mixersweep")


def only(runs_dir: Path) -> Path:
    """The one run directory."""
    (found,) = [path.parent for path in runs_dir.glob("*/config.yaml")]
    return found


def rows(runs_dir: Path) -> list[dict[str, Any]]:
    """The rows of the one run, none while there is none."""
    files = list(runs_dir.glob("*/metrics.jsonl"))
    return [json.loads(line) for line in files[0].read_bytes().split(b"\n")[:-1]] if files else []


def told(runs_dir: Path) -> list[dict[str, Any]]:
    """The rows, but for what a clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows(runs_dir)]


def probed(runs_dir: Path) -> list[dict[str, Any]]:
    """The rows of probes, but for what a clock says."""
    lines = (only(runs_dir) / "probes.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def status(runs_dir: Path) -> Mapping[str, Any]:
    """The status of the one run."""
    stored: Mapping[str, Any] = json.loads((only(runs_dir) / "status.json").read_text())
    return stored


def when(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = HANGS) -> None:
    """Wait for something that a process does."""
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.005)
