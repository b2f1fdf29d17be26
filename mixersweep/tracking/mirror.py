"""The process beside a training run that sends the rows of its ``metrics.jsonl`` to Weights & Biases.

It reads the run directory and holds nothing that is not there. Online where the client finds an API key, else offline
in ``RUN_DIR/wandb/``, whole each time, since an offline run cannot be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import wandb
from wandb.errors import CommError, UsageError

from mixersweep.config.schema import Tracking
from mixersweep.errors import FAILED
from mixersweep.runs import RunDirectory
from mixersweep.tracking.client import TrainingRun, clear, line
from mixersweep.tracking.identity import read_identity, writing

POLL = 0.5
"""Seconds between two looks at the run directory."""

MARGIN = 2.0
"""Seconds by which W&B gives up before the training does, so that this process ends by itself with its file whole."""


def main() -> int:
    """Mirror one run until it ends; 0 where all of it is mirrored, else 1 and a line that says why not."""
    parser = argparse.ArgumentParser(prog="python -m mixersweep.tracking")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="the process that holds the run")
    parser.add_argument("--tracking", type=json.loads, required=True, help="the settings, as JSON")
    asked = parser.parse_args()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))  # wandb-core closes its file and follows
    os.nice(10)
    try:
        with writing(asked.run_dir):  # an earlier one may still be at it, for as long as it waits for an answer
            problem = _mirror(RunDirectory.open(asked.run_dir), asked.parent, Tracking(**asked.tracking))
    except Exception as error:
        problem = line(error)
    if problem:
        print(f"W&B: {problem}", file=sys.stderr, flush=True)
    return 1 if problem else 0


def _mirror(directory: RunDirectory, parent: int, tracking: Tracking) -> str | None:
    """Follow the run to its end; returns what is not mirrored and why, or None."""
    patience = max(1.0, tracking.timeout - MARGIN)
    place = read_identity(directory.path).place(tracking)
    mirrored, problem = _online_or_offline(lambda mode: TrainingRun(directory, place, patience, mode))
    if mirrored.run.disabled:
        return None
    clear(directory.path / "wandb", keep=Path(mirrored.run.dir).parent)
    state = _follow(directory, parent, mirrored)
    last = threading.Timer(max(1.0, tracking.timeout), os._exit, [FAILED])  # nothing of W&B outlives this
    last.daemon = True
    last.start()
    problem = mirrored.end(state, with_checkpoint=tracking.checkpoint) or problem
    return f"{problem}; `mixersweep wandb sync` sends it" if problem else None


def _follow(directory: RunDirectory, parent: int, mirrored: TrainingRun) -> str:
    """Log the rows as they come until the run has ended, and return its state."""
    seen = None
    while True:
        state = _state(directory, parent)  # before the rows: those of a run that has ended are all there
        size = _size(directory.path / "metrics.jsonl")
        if size != seen:
            mirrored.log(directory.rows())
            seen = size
        if state != "running":
            return state
        time.sleep(POLL)


def _state(directory: RunDirectory, parent: int) -> str:
    """The stored state of the run; ``lost`` where the training that is mirrored here no longer holds it."""
    status = directory.status()
    held = os.getppid() == parent == status.pid
    return "lost" if status.state == "running" and not held else status.state


def _online_or_offline(open_run: Callable[[str | None], TrainingRun]) -> tuple[TrainingRun, str | None]:
    """The run at W&B, else in files: where there is no key, or, with the reason beside it, where nobody answers."""
    try:
        return open_run(None), None
    except UsageError:
        return open_run("offline"), None
    except CommError as error:
        wandb.teardown()  # else the client says that the id is in use
        return open_run("offline"), line(error)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
