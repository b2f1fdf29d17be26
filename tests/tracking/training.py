"""What a training does to a run directory, without training: rows as they come, an end, and a mirror beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mixersweep import tracking
from mixersweep.compose import config_of
from mixersweep.runs import Origin, RunDirectory, completed_record, hold, solve
from mixersweep.runs.files import read_json
from mixersweep.runs.record import _MEASURED

KEY = "0123456789abcdef" * 2 + "fakefake"
PROBLEM = "W&B: not fully mirrored"
TIMEOUT = 60
"""Seconds that nothing takes here, however slow the machine."""


ORIGIN = Origin(experiment="fig4", sweep="s1")


def make(tmp_path: Path, *overrides: str, origin: Origin = ORIGIN) -> RunDirectory:
    """A run directory as ``train`` makes it, not begun."""
    settings = {"model": "s_mixer", "connections": "4096", "tracking.timeout": str(TIMEOUT), "epochs": "5"}
    settings |= dict(override.split("=", 1) for override in overrides)
    config = config_of([f"{key}={value}" for key, value in settings.items()])
    return RunDirectory.create(solve(config, origin), tmp_path / "runs")


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "time": 1.7e9 + epoch, "train_loss": 1 / (1 + epoch), "validation_accuracy": epoch / 100}


def result(directory: RunDirectory) -> dict[str, Any]:
    measured = dict.fromkeys(_MEASURED, 0.5) | {"environment": {"device": "cpu"}, "git_commit": None, "test_loss": 0.25}
    return completed_record(directory.run, measured)


def eventually(holds: Callable[[], object], seconds: float = TIMEOUT) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def processes(directory: RunDirectory) -> list[psutil.Process]:
    """The mirrors of this run that are alive, and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(directory.path) in process.cmdline():
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return found


def gone(family: list[psutil.Process]) -> bool:
    return not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class Training:
    """What a training does: hold the run, start the mirror, append rows, end; ``said`` is what the mirror reported."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.delay = 0.0

    def run(
        self, epochs: range, during: Callable[[], object] = lambda: None, ends: BaseException | None = None
    ) -> None:
        mirror = tracking.Mirror({}, self.said.append)
        family: list[psutil.Process] = []
        try:
            with hold(self.directory.path):
                mirror = tracking.start([self.directory], self.said.append)
                for epoch in epochs:
                    self.directory.append_row(row(epoch))
                during()
                family = processes(self.directory)
                if ends:
                    raise ends
                self.directory.write_result(result(self.directory))
        except BaseException as end:
            if end is not ends:
                raise
        finally:
            before = time.monotonic()
            mirror.finish()
            self.delay = time.monotonic() - before
        eventually(lambda: gone(family), 5)
        assert processes(self.directory) == []
        assert KEY not in everything(self.directory.path)


class Pack:
    """What a training of several runs does: hold them, mirror them in one process, end each on its own.

    ``said`` is what the mirror reported, ``delay`` how many seconds it took when all had ended. A run that was not
    ended in the block is completed at its end.
    """

    def __init__(self, *directories: RunDirectory) -> None:
        self.directories = directories
        self.said: list[str] = []
        self.delay = 0.0
        self._holds = {directory.path: hold(directory.path) for directory in directories}

    def __enter__(self) -> Pack:
        for held in self._holds.values():
            held.__enter__()
        self._mirror = tracking.start(self.directories, self.said.append)
        return self

    def append(self, epochs: range) -> None:
        """Append the rows of the runs that have not ended."""
        for directory in self.directories:
            if directory.path in self._holds:
                for epoch in epochs:
                    directory.append_row(row(epoch))

    def end(self, directory: RunDirectory, ends: BaseException | None = None) -> None:
        held = self._holds.pop(directory.path)
        if ends is None:
            directory.write_result(result(directory))
        assert not held.__exit__(ends and type(ends), ends, None)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        family = processes(self.directories[0])
        for directory in self.directories:
            if directory.path in self._holds:
                self.end(directory, error)
        before = time.monotonic()
        self._mirror.finish()
        self.delay = time.monotonic() - before
        eventually(lambda: gone(family), 5)
        assert KEY not in "".join(everything(directory.path) for directory in self.directories)


def everything(folder: Path) -> str:
    return "".join(file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file())


def run_id(directory: RunDirectory) -> str:
    return run_id_of(directory.path)


def run_id_of(run_dir: Path) -> str:
    return str(read_json(run_dir / "tracking.json")["id"])


def offline(directory: RunDirectory) -> list[dict[str, Any]]:
    return offline_of(directory.path)


def offline_of(run_dir: Path) -> list[dict[str, Any]]:
    """The records of the one offline file, by W&B's own reader."""
    (file,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    read = subprocess.run([wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


def offline_rows(directory: RunDirectory) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in offline(directory) if record["type"] == "history"]


def epochs(rows: list[dict[str, Any]]) -> list[int]:
    return [r["epoch"] for r in rows]
