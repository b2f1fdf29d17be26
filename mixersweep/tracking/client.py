"""The W&B client as this program uses it: it asks nothing, sends nothing about machine or code, and gives up in time.

A row's step at W&B is its epoch, so that each row arrives once: a resumed run tells its next step, and the rows from
there on are logged. One process may have many runs open, each in a thread of its own; an answer that does not come and
a refusal concern one run alone. Only processes of their own import this (``mirror``, ``upload``, the report's).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import wandb
from pydantic import ValidationError
from wandb.errors import CommError, UsageError

from mixersweep.errors import DONE, FAILED, INTERRUPTED, PREEMPTED
from mixersweep.runs import Run, RunDirectory, planned
from mixersweep.runs.experiment import EXECUTION, flat
from mixersweep.runs.state import State
from mixersweep.tracking.identity import (
    Place,
    Uploaded,
    artifact_files,
    of_agent,
    read_identity,
    write_identity,
    write_uploaded,
)

T = TypeVar("T")

EXIT_CODES = {State.COMPLETED: DONE, State.PREEMPTED: PREEMPTED, State.INTERRUPTED: INTERRUPTED}
"""How a run ended, as W&B is told; every other state is a failure."""

FATAL = b"filestream: fatal error"
"""What stands in the client's own log of a run when the server refuses its rows for good (deleted, read-only).

The client prints as much, but not of which run, and tells it in no other way.
"""

LONGEST_TAG = 64


def begin(
    folder: Path,
    place: Place,
    patience: float,
    mode: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> wandb.Run:
    """Open the run of a folder under its id, going on where it is there; one that was deleted gets another id.

    ``settings`` are the client's, beside those that every run here has; ``fields`` are what is known of the run. Raises
    ``UsageError`` without a key and ``CommError`` where nobody answers within ``patience`` seconds.
    """
    settings = {**(settings or {}), "init_timeout": patience}
    try:
        return _begin(folder, place, mode, settings, fields)
    except CommError as error:
        if "created and deleted" not in str(error) or of_agent() is not None:
            raise
        write_identity(folder, read_identity(folder).redrawn())
        return _begin(folder, place, mode, settings, fields)


def _begin(
    folder: Path, place: Place, mode: str | None, settings: Mapping[str, Any], fields: Mapping[str, Any]
) -> wandb.Run:
    settings = {
        **settings,
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
        reinit="create_new",
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(**{name: value for name, value in settings.items() if name in known}),
    )


def is_refused(run: wandb.Run) -> bool:
    """Whether the server has refused the rows of a run that was online."""
    log = Path(run.dir).parent / "logs" / "debug-internal.log"
    return log.exists() and FATAL in log.read_bytes()


class TrainingRun:
    """The run at W&B that mirrors a training run, opened with all that is known before it trains.

    ``patience`` is how many seconds an answer is waited for; opening raises what ``begin`` raises. The run ``is_stuck``
    where its end was no longer waited for: a thread is still at it.
    """

    def __init__(self, directory: RunDirectory, place: Place, patience: float, mode: str | None = None) -> None:
        self._directory, self._place, self._patience = directory, place, patience
        self.is_stuck = False
        run, origin, sizes = directory.run, directory.run.origin, directory.run.architecture
        tags = [run.config.model.name, run.config.data.name, *([origin.experiment] if origin.experiment else [])]
        self.run = begin(
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
        self._next_step = self.run.starting_step
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        known = {"connections": sizes.connections, "density": sizes.density, "parameters": sizes.parameters}
        self.run.summary.update({"effective_width": sizes.width, **known})

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log those of the rows that are not there yet, each with its probes and the time when it was."""
        probes = {
            row.pop("epoch"): {f"probes/{name}": value for name, value in row.items()}
            for row in self._directory.probes()
        }
        for row in rows:
            if row["epoch"] >= self._next_step:
                inside = probes.get(row["epoch"], {})
                self.run.log({**row, **inside, "_timestamp": row["time"]}, step=row["epoch"], commit=True)
                self._next_step = row["epoch"] + 1

    def end(self, state: State, *, with_checkpoint: bool) -> str | None:
        """Tell how the run ended and send what is left; what did not go up and why, or None.

        What is known to be at W&B stands in ``wandb/uploaded.json`` afterwards; where that is all, the client's files
        go.
        """
        run, run_dir, problem = self.run, self._directory.path, None
        deadline = time.monotonic() + self._patience
        if state is State.COMPLETED:
            run.summary.update(_scalars(self._directory.result() or {}))
        files = artifact_files(state, with_checkpoint) if not run.offline else []
        if files:
            try:
                within(self._patience / 2, lambda: _log_files(run, self._directory, files))
            except Exception as error:
                problem = f"config and result did not go up as an artifact: {line(error)}"
        if state is State.PREEMPTED:
            run.mark_preempting()
        try:  # with no limit of the client's, whose way of giving up holds up the other runs of the process
            within(deadline - time.monotonic(), lambda: run.finish(exit_code=EXIT_CODES.get(state, FAILED)))
        except TimeoutError:
            self.is_stuck = True
            problem = f"no answer within {self._patience:g} s"
        if not run.offline and is_refused(run):
            problem = "refused by W&B; the run may have been deleted there, or the key be read-only"
        if run.offline:
            return problem
        epoch = max((row["epoch"] for row in self._directory.rows()), default=None)
        done = Uploaded(run.id, self._place.project, self._place.entity, epoch, state, files)
        write_uploaded(run_dir, None if problem else done)
        if problem is None:
            clear(run_dir / "wandb")
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
def saying_to(log: Path) -> Iterator[None]:
    """Append all that is printed in the block to a file."""
    log.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        with log.open("ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, descriptor)
            os.close(kept)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What the call returns or raises; ``TimeoutError`` after so many seconds, and it is left to itself.

    For calls of the client's that wait for an answer and take no limit.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(max(0.1, seconds))
    except TimeoutError:
        if outcome.done():  # and this is the call's own
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def clear(folder: Path, keep: Path | None = None) -> None:
    """Remove what clients left of this run: a new one has it all, and half a file breaks ``wandb sync``."""
    for old in folder.glob("*run-*"):
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)


def _config(run: Run) -> dict[str, Any]:
    """Flat keys to filter on: the settings as they are spelled on the command line, and what the rule made of them."""
    settings = {name: value for name, value in flat(run.config) if name.partition(".")[0] not in EXECUTION}
    named = {name.removesuffix(".name"): value for name, value in settings.items()}
    return {**named, **planned(run), "effective_width": run.architecture.width}


def _scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, int | float | str)}


def lacks_key(error: UsageError) -> bool:
    """Whether the client was not used wrongly, but has no key."""
    return "api" in str(error).lower() and "key" in str(error).lower()


def line(error: BaseException) -> str:
    """An exception in one line; of a setting that the client refuses, the variable that has it."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        name = "_".join(["WANDB", *map(str, first["loc"][:1])]).upper()
        return f"{name}={first['input']}: {first['msg']}"[:200]
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
