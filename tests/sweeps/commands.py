"""The command as people use it: real processes in a folder of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from mixersweep.runs import VOLATILE
from tests.speed import HANGS

T = TypeVar("T")

SMALL = ["connections=1000", "depth=1", "epochs=1", "batch_size=1500", "threads=1", "tracking=none"]
"""A run of about a second."""


def environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MIXERSWEEP_"))}
    return {**kept, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "mixersweep", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(folder), text=True, **pipes)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with start(folder, *arguments) as process:
        try:
            out, err = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def when(condition: Callable[[], T], process: subprocess.Popen[str]) -> T:
    """Wait for it while the process is there, and return what it found."""
    deadline = time.time() + HANGS
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.005)
    return found


def states(runs_dir: Path) -> dict[str, str]:
    return {p.parent.name: json.loads(p.read_text())["state"] for p in runs_dir.glob("[!.]*-s*/status.json")}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] if file.exists() else []


def numbers(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """What the experiments decided, by run: records and rows without what may differ."""
    found = {}
    for file in runs_dir.glob("[!.]*-s*/result.json"):
        record = json.loads(file.read_text())
        record = {key: value for key, value in record.items() if key not in (*VOLATILE, "overrides")}
        timed = ("time", "seconds", "images_per_second")
        own = [{key: value for key, value in row.items() if key not in timed} for row in rows(file.parent)]
        found[file.parent.name] = {**record, "rows": own}
    return found


def results(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(Path(line).read_text()) for line in stdout.splitlines()]


def family(pid: int) -> list[psutil.Process]:
    """What the process started, and what that did."""
    return psutil.Process(pid).children(recursive=True)


def training(pid: int) -> tuple[psutil.Process, psutil.Process] | None:
    """The supervisor of a sweep and one of its runs."""
    try:
        for child in family(pid):
            if runs := child.children():
                return child, runs[0]
    except psutil.NoSuchProcess:
        pass
    return None


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
