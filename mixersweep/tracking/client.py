"""The W&B client as this program uses it: it asks nothing, sends nothing about machine or code, and gives up in time.

A row's step at W&B is its epoch, so that each row arrives once: a resumed run tells its next step, and the rows from
there on are logged. Only processes of their own import this (``mirror``, ``upload``, the report's).
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError

from mixersweep.config import Config
from mixersweep.errors import DONE, FAILED, INTERRUPTED, PREEMPTED
from mixersweep.runs import Run, RunDirectory, planned
from mixersweep.tracking.identity import (
    LOG,
    Place,
    Uploaded,
    artifact_files,
    of_agent,
    read_identity,
    write_identity,
    write_uploaded,
)

EXIT_CODES = {"completed": DONE, "preempted": PREEMPTED, "interrupted": INTERRUPTED}
"""How a run ended, as W&B is told; every other state is a failure."""

REFUSED = "Fatal error while uploading data"
"""What the client prints, and tells in no other way, when the server refuses a run for good (deleted, read-only)."""

LONGEST_TAG = 64


def begin(folder: Path, place: Place, patience: float, mode: str | None = None, **fields: Any) -> wandb.Run:
    """Open the run of a folder under its id, going on where it is there; one that was deleted gets another id.

    Raises ``UsageError`` without a key and ``CommError`` where nobody answers within ``patience`` seconds.
    """
    try:
        return _begin(folder, place, patience, mode, fields)
    except CommError as error:
        if "created and deleted" not in str(error) or of_agent() is not None:
            raise
        wandb.teardown()
        write_identity(folder, read_identity(folder).redrawn())
        return _begin(folder, place, patience, mode, fields)


def _begin(folder: Path, place: Place, patience: float, mode: str | None, fields: Mapping[str, Any]) -> wandb.Run:
    settings: dict[str, Any] = {
        "init_timeout": patience,
        "finish_timeout": patience / 2,
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
    named: dict[str, Any] = {}
    if of_agent() is None:  # whose run is in the environment; the client ignores anything else, and says so
        named = {"id": read_identity(folder).id, **dataclasses.asdict(place)}
    return wandb.init(
        **named,
        **fields,
        resume="allow",
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(**{name: value for name, value in settings.items() if name in known}),
    )


def begin_training(directory: RunDirectory, place: Place, patience: float, mode: str | None = None) -> wandb.Run:
    """Open the run that mirrors a training run, with all that is known before it trains."""
    run, origin, sizes = directory.run, directory.run.origin, directory.run.architecture
    tags = [run.config.model.name, run.config.data.name, *([origin.experiment] if origin.experiment else [])]
    opened = begin(
        directory.path,
        place,
        patience,
        mode,
        name=run.name,
        group=origin.sweep,
        job_type="train",
        tags=[tag[:LONGEST_TAG] for tag in tags],
        config=_config(run),
    )
    opened.define_metric("epoch")
    opened.define_metric("*", step_metric="epoch")
    opened.summary.update(
        {
            "effective_width": sizes.width,
            "connections": sizes.connections,
            "density": sizes.density,
            "parameters": sizes.parameters,
        }
    )
    return opened


def log_rows(run: wandb.Run, rows: list[dict[str, Any]], next_step: int) -> int:
    """Log the rows from that step on, each with the time when it was; returns the step after them."""
    for row in rows:
        if row["epoch"] >= next_step:
            run.log({**row, "_timestamp": row["time"]}, step=row["epoch"], commit=True)
            next_step = row["epoch"] + 1
    return next_step


def end(
    run: wandb.Run, directory: RunDirectory, place: Place, state: str, patience: float, with_checkpoint: bool
) -> str | None:
    """Tell how the run ended, send what is left within ``patience`` seconds; what did not go up and why, or None.

    What is known to be at W&B stands in ``wandb/uploaded.json`` afterwards, and then the client's files go.
    """
    log = directory.path / "wandb" / LOG
    before = _size(log)
    problem = None
    if state == "completed":
        run.summary.update(_scalars(directory.result() or {}))
    files = artifact_files(state, with_checkpoint) if not run.offline else []
    if files:
        try:
            with within(patience / 2):
                _log_files(run, directory, files)
        except Exception as error:
            problem = f"config and result did not go up as an artifact: {line(error)}"
    if state == "preempted":
        run.mark_preempting()
    try:
        run.finish(exit_code=EXIT_CODES.get(state, FAILED))
    except TimeoutError:
        problem = f"no answer within {patience:g} s"
    if before is not None and REFUSED in log.read_bytes()[before:].decode(errors="replace"):
        problem = REFUSED.lower()
    if run.offline:
        return problem
    epoch = max((row["epoch"] for row in directory.rows()), default=None)
    done = Uploaded(run.id, place.project, place.entity, epoch, state, files)
    write_uploaded(directory.path, None if problem else done)
    if problem is None:
        clear(directory.path / "wandb")
    return problem


def _log_files(run: wandb.Run, directory: RunDirectory, files: list[str]) -> None:
    """Send files of a completed run, which no longer change, as they stand; the same content is sent once."""
    known = planned(directory.run)
    metadata = {key: known[key] for key in ("name", "fingerprint", "model", "dataset", "seed", "experiment", "sweep")}
    artifact = wandb.Artifact(f"run-{run.id}", type="run", description=directory.run.name, metadata=metadata)
    for file in files:
        artifact.add_file(str(directory.path / file), policy="immutable", skip_cache=True)
    run.log_artifact(artifact).wait()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after so many seconds; calls of the client's wait for up to 20 of them.

    For the main thread.
    """

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clear(folder: Path, keep: Path | None = None) -> None:
    """Remove what clients left of this run: a new one has it all, and half a file breaks ``wandb sync``."""
    for old in folder.glob("*run-*"):
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)


def _config(run: Run) -> dict[str, Any]:
    """Flat keys to filter on: the settings as they are spelled on the command line, and what the rule made of them."""
    experiment = {
        field.name: getattr(run.config, field.name)
        for field in dataclasses.fields(Config)
        if not field.metadata.get("execution")
    }
    return {**dict(_flat(experiment)), **planned(run), "effective_width": run.architecture.width}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            if "name" in inner:
                yield name, inner.pop("name")
            yield from _flat(inner, f"{name}.")
        else:
            yield prefix + name, value


def _scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, int | float | str)}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def line(error: BaseException) -> str:
    """An exception in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
