"""The test cluster as tests see it: whether it is there, and what it is told."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.sweeps.commands import rows

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds after which a test gives up."""


def missing() -> str | None:
    """Why there is no test cluster, None where there is one. A cluster of somebody's is none."""
    if "SLURM_CONF" not in os.environ or shutil.which("scontrol") is None:
        return "no test cluster: tests/slurm/cluster.sh up DIR starts one, SLURM_CONF=DIR/slurm.conf names it"
    found = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    return None if "mixersweep-tests" in found else "SLURM_CONF names a cluster that is not the tests' own"


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def listed() -> dict[str, str]:
    """The jobs that Slurm has not ended: the node of each, empty for one that waits."""
    lines = slurm("squeue", "--noheader", "--array", "--format=%i|%N").splitlines()
    return {job: node for job, _, node in (line.partition("|") for line in lines)}


def preempt(node: str) -> None:
    """Have a job of the partition ``high`` take the node for a moment."""
    asked = ["--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
    slurm("sbatch", *asked, "--wrap=sleep 1")


def until(condition: Callable[[], T]) -> T:
    deadline = time.time() + PATIENCE
    while not (found := condition()):
        assert time.time() < deadline, "nothing came of it"
        time.sleep(0.02)
    return found


def status(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return found


def job_log(runs_dir: Path, job: str) -> str:
    """What a job has said so far."""
    return "".join(path.read_text() for path in runs_dir.glob(f".sweeps/*/slurm/{job}_0_log.out"))


@contextmanager
def frozen(*run_dirs: Path, after: int = 3) -> Iterator[list[str]]:
    """Suspend runs once each has told some epochs, so that what is done to them hits them there; yields their jobs."""
    held: dict[Path, psutil.Process] = {}

    def all_are_held() -> bool:
        for run_dir in set(run_dirs) - set(held):  # whichever comes as far first: none waits for another and ends
            if len(rows(run_dir)) >= after and status(run_dir)["state"] == "running":
                held[run_dir] = psutil.Process(status(run_dir)["pid"])
                held[run_dir].suspend()
        return len(held) == len(run_dirs)

    try:
        until(all_are_held)
        yield [status(run_dir)["job"] for run_dir in run_dirs]
    finally:
        for process in held.values():
            with suppress(psutil.NoSuchProcess):
                process.resume()
