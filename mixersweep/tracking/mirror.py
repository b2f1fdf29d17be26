"""The process beside a training run that sends the rows of its ``metrics.jsonl`` to Weights & Biases.

It reads the run directory and holds nothing that is not there. A row's step at W&B is its epoch, so that each row
arrives once: a resumed run tells its next step, and the rows from there on are logged. Online where the client finds an
API key, else offline in ``RUN_DIR/wandb/``, whole each time, since an offline run cannot be resumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError, UsageError

from mixersweep.config import Config
from mixersweep.errors import DONE, FAILED, INTERRUPTED, PREEMPTED
from mixersweep.runs import Run, RunDirectory, planned
from mixersweep.runs.files import read_json, write_json

POLL = 0.5
"""Seconds between two looks at the run directory."""

MARGIN = 2.0
"""Seconds by which W&B gives up before the training does, so that this process ends by itself with its file whole."""

EXIT_CODES = {"completed": DONE, "preempted": PREEMPTED, "interrupted": INTERRUPTED}
"""How a run ended, as W&B is told; every other state is a failure."""


def main() -> int:
    """Mirror one run until it ends; 0 where all of it is mirrored, else 1 and a line that says why not."""
    parser = argparse.ArgumentParser(prog="python -m mixersweep.tracking")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="the process that holds the run")
    parser.add_argument("--project", required=True)
    parser.add_argument("--entity")
    parser.add_argument("--timeout", type=float, required=True)
    asked = parser.parse_args()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))  # wandb-core closes its file and follows
    os.nice(10)
    try:
        problem = _mirror(RunDirectory.open(asked.run_dir), asked.parent, asked.project, asked.entity, asked.timeout)
    except Exception as error:
        problem = _line(error)
    if problem:
        print(f"W&B: {problem}", file=sys.stderr, flush=True)
    return 1 if problem else 0


def _mirror(directory: RunDirectory, parent: int, project: str, entity: str | None, timeout: float) -> str | None:
    """Follow the run to its end; returns what is not mirrored and why, or None."""
    patience = max(1.0, timeout - MARGIN)

    def open_run(mode: str | None = None) -> wandb.Run:
        return _open(directory, project, entity, patience, mode)

    run, problem = _online_or_offline(directory.path / "tracking.json", open_run)
    if run.disabled:
        return None
    _clear(directory.path / "wandb", keep=Path(run.dir).parent)
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    sizes = directory.run.architecture
    run.summary.update(
        {
            "effective_width": sizes.width,
            "connections": sizes.connections,
            "density": sizes.density,
            "parameters": sizes.parameters,
        }
    )
    state = _follow(directory, parent, run)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, timeout))  # nothing of W&B outlives this, whoever waits
    if state == "completed":
        run.summary.update(_scalars(directory.result() or {}))
    if state == "preempted":
        run.mark_preempting()
    try:
        run.finish(exit_code=EXIT_CODES.get(state, FAILED))
    except TimeoutError:
        problem = f"no answer within {patience:g} s; `wandb sync {Path(run.dir).parent}` sends it again"
    return problem


def _follow(directory: RunDirectory, parent: int, run: wandb.Run) -> str:
    """Log the rows as they come until the run has ended, and return its state."""
    next_step, seen = run.starting_step, None
    while True:
        state = _state(directory, parent)  # before the rows: those of a run that has ended are all there
        size = _size(directory.path / "metrics.jsonl")
        if size != seen:
            for row in directory.rows():
                if row["epoch"] >= next_step:
                    run.log(row, step=row["epoch"], commit=True)
                    next_step = row["epoch"] + 1
            seen = size
        if state != "running":
            return state
        time.sleep(POLL)


def _state(directory: RunDirectory, parent: int) -> str:
    """The stored state of the run; ``lost`` where the training that is mirrored here no longer holds it."""
    status = directory.status()
    held = os.getppid() == parent == status.pid
    return "lost" if status.state == "running" and not held else status.state


def _online_or_offline(identity: Path, open_run: Callable[..., wandb.Run]) -> tuple[wandb.Run, str | None]:
    """The run at W&B, else in files: where there is no key, or, with the reason beside it, where nobody answers."""
    try:
        try:
            return open_run(), None
        except CommError as error:
            if "created and deleted" not in str(error):
                raise
            wandb.teardown()
            stem = read_json(identity)["id"].rpartition("-")[0]
            write_json(identity, {"id": f"{stem}-{secrets.token_hex(2)}"})
            return open_run(), None
    except UsageError:
        return open_run("offline"), None
    except CommError as error:
        wandb.teardown()  # else the client says that the id is in use
        run = open_run("offline")
        return run, f"{_line(error)}; `wandb sync {Path(run.dir).parent}` sends it later"


def _open(directory: RunDirectory, project: str, entity: str | None, patience: float, mode: str | None) -> wandb.Run:
    """Open the run under the id of its directory, in the mode that the client's own settings say, asking nothing."""
    settings: dict[str, Any] = {
        "init_timeout": patience,
        "finish_timeout": patience,
        "finish_timeout_raises": True,
        "quiet": True,  # else the client first asks who is logged in, for ten seconds where nobody answers
        "x_disable_viewer": True,
        "x_transaction_log_flush_interval": 1.0,
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "use_dot_wandb": False,
        "symlink": False,
        "x_save_requirements": False,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
    }
    known = wandb.Settings.model_fields
    run = directory.run
    return wandb.init(
        id=read_json(directory.path / "tracking.json")["id"],
        resume="allow",
        name=run.name,
        project=project,
        entity=entity,
        group=run.origin.sweep,
        job_type="train",
        tags=[run.config.model.name, run.config.data.name],
        config=_config(run),
        dir=directory.path,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(**{name: value for name, value in settings.items() if name in known}),
    )


def _config(run: Run) -> dict[str, Any]:
    """Flat keys to filter on: the settings as they are spelled on the command line, and what the rule made of them."""
    experiment = {
        field.name: getattr(run.config, field.name)
        for field in dataclasses.fields(Config)
        if not field.metadata.get("execution")
    }
    return {**dict(_flat(experiment)), **planned(run), "effective_width": run.architecture.width}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            if "name" in inner:
                yield name, inner.pop("name")
            yield from _flat(inner, f"{name}.")
        else:
            yield prefix + name, value


def _scalars(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, int | float | str)}


def _clear(folder: Path, keep: Path) -> None:
    """Remove what earlier mirrors of this run left: the new one has it all, and half a file breaks ``wandb sync``."""
    for old in folder.glob("*run-*"):
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _line(error: Exception) -> str:
    """An exception in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
