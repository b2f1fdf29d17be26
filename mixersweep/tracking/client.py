"""Use the W&B client so that it never prompts, sends nothing about machine or code, and gives up in time.

A row's step at W&B is its epoch, so each row arrives once: a resumed W&B run reports its next step, and the rows from
there on are logged. One process may have many runs open, each in a thread of its own; a missing answer or a refusal
affects one run alone. Only separate processes import this module (those of ``mirror``, ``upload`` and the report).
"""

from __future__ import annotations

import dataclasses
import os
import re
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

from mixersweep.errors import DONE, FAILED, INTERRUPTED, PREEMPTED, UserError
from mixersweep.runs import Run, RunDirectory, planned_record
from mixersweep.runs.experiment import EXECUTION, flatten
from mixersweep.runs.state import State
from mixersweep.tracking.identity import (
    NO_KEY,
    Destination,
    Uploaded,
    agent_identity,
    artifact_files,
    read_identity,
    write_identity,
    write_uploaded,
)

T = TypeVar("T")

EXIT_CODES = {State.COMPLETED: DONE, State.PREEMPTED: PREEMPTED, State.INTERRUPTED: INTERRUPTED}
"""The exit code that W&B gets for a run's state; every other state is a failure."""

FATAL = b"filestream: fatal error"
"""The text in the client's own log of a run whose rows the server refuses for good (run deleted, key read-only).

The client prints this error too, but without saying for which run, and reports it in no other way.
"""

LONGEST_TAG = 64


def begin(
    folder: Path,
    destination: Destination,
    patience: float,
    mode: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> wandb.Run:
    """Open the W&B run whose id is kept in ``folder``, resuming it where it exists; a deleted one gets a new id.

    ``settings`` are client settings besides the common ones, ``fields`` further arguments of ``wandb.init`` such as
    name, tags and config. Raises ``UsageError`` without an API key and ``CommError`` without an answer within
    ``patience`` seconds.
    """
    settings = {**(settings or {}), "init_timeout": patience}
    try:
        return _begin(folder, destination, mode, settings, fields)
    except CommError as error:
        if "created and deleted" not in str(error) or agent_identity() is not None:
            raise
        write_identity(folder, read_identity(folder).redrawn())
        return _begin(folder, destination, mode, settings, fields)


def _begin(
    folder: Path, destination: Destination, mode: str | None, settings: Mapping[str, Any], fields: Mapping[str, Any]
) -> wandb.Run:
    settings = {
        **settings,
        "quiet": True,  # else the client first asks who is logged in, up to ten seconds without an answer
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
    if agent_identity() is None:  # else the client takes the agent's run from the environment, and warns of any other
        named = {"id": read_identity(folder).id, **dataclasses.asdict(destination)}
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
    """The W&B run that mirrors a training run, opened with all that is known before training.

    ``patience`` is how many seconds to wait for an answer; opening raises what ``begin`` raises. ``is_stuck`` is True
    where the wait for its end was given up while a thread still works on it.
    """

    def __init__(
        self, directory: RunDirectory, destination: Destination, patience: float, mode: str | None = None
    ) -> None:
        self._directory, self._destination, self._patience = directory, destination, patience
        self.is_stuck = False
        run, origin, sizes = directory.run, directory.run.origin, directory.run.architecture
        tags = [run.config.model.name, run.config.data.name, *([origin.experiment] if origin.experiment else [])]
        self.run = begin(
            directory.path,
            destination,
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
        """Log the rows that W&B does not have yet, each with its probes and its time."""
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
        """Finish the W&B run: send its state and all that is left; returns what was not uploaded and why, or None.

        Where all was uploaded, ``wandb/uploaded.json`` records it and the client's own files are removed.
        """
        run, run_dir, problem = self.run, self._directory.path, None
        deadline = time.monotonic() + self._patience
        if state is State.COMPLETED:
            run.summary.update(_scalars(self._directory.result() or {}))
        files = artifact_files(state, with_checkpoint) if not run.offline else []
        if files:
            try:
                call_within(self._patience / 2, lambda: _log_files(run, self._directory, files))
            except Exception as error:
                problem = f"config and result were not uploaded as an artifact: {first_line(error)}"
        if state is State.PREEMPTED:
            run.mark_preempting()
        try:  # without the client's own time limit, which would block the other runs of the process
            call_within(deadline - time.monotonic(), lambda: run.finish(exit_code=EXIT_CODES.get(state, FAILED)))
        except TimeoutError:
            self.is_stuck = True
            problem = f"no answer within {self._patience:g} s"
        if not run.offline and is_refused(run):
            problem = "refused by W&B; the run may have been deleted there, or the key be read-only"
        if run.offline:
            return problem
        epoch = max((row["epoch"] for row in self._directory.rows()), default=None)
        done = Uploaded(run.id, self._destination.project, self._destination.entity, epoch, state, files)
        write_uploaded(run_dir, None if problem else done)
        if problem is None:
            remove_client_files(run_dir / "wandb")
        return problem


def _log_files(run: wandb.Run, directory: RunDirectory, files: list[str]) -> None:
    """Upload files of a completed run as an artifact; the same content is sent once."""
    known = planned_record(directory.run)
    metadata = {key: known[key] for key in ("name", "fingerprint", "model", "dataset", "seed", "experiment", "sweep")}
    artifact = wandb.Artifact(f"run-{run.id}", type="run", description=directory.run.name, metadata=metadata)
    for file in files:
        artifact.add_file(str(directory.path / file), policy="immutable", skip_cache=True)
    run.log_artifact(artifact).wait()


@contextmanager
def append_output_to(log: Path) -> Iterator[None]:
    """Append all output of this process inside the block to a file, that of subprocesses included."""
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


def call_within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what ``call`` does; after ``seconds`` raise ``TimeoutError`` and leave it running in a thread.

    It is for calls of the client that wait for an answer and have no time limit.
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
        if outcome.done():  # the error was raised by the call itself
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def remove_client_files(folder: Path, keep: Path | None = None) -> None:
    """Remove the files of earlier clients of a run: a new client sends all, and a torn file breaks ``wandb sync``."""
    for old in folder.glob("*run-*"):
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)


def _config(run: Run) -> dict[str, Any]:
    """The config that W&B filters on: settings as spelled on the command line, and the sizes that follow from them."""
    settings = {name: value for name, value in flatten(run.config) if name.partition(".")[0] not in EXECUTION}
    named = {name.removesuffix(".name"): value for name, value in settings.items()}
    return {**named, **planned_record(run), "effective_width": run.architecture.width}


def _scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, int | float | str)}


def lacks_key(error: UsageError) -> bool:
    """Whether a ``UsageError`` of the client means that there is no API key."""
    return re.search(r"no api[ _]key|api[ _]key not configured", str(error), re.IGNORECASE) is not None


def user_error(error: UsageError) -> UserError:
    """The user's mistake that a ``UsageError`` of the client means: no API key, or a value that the client refuses."""
    return UserError(NO_KEY if lacks_key(error) else f"W&B: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where there is none.

    For a value that the client refuses, it names the variable of the environment that holds the value.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        name = "_".join(["WANDB", *map(str, first["loc"][:1])]).upper()
        return f"{name}={first['input']}: {first['msg']}"[:200]
    line = (str(error).splitlines() or [type(error).__name__])[0]
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("WANDB_") and value and name != "WANDB_API_KEY"
    }
    quoted = [f"{name}={value}: " for name, value in variables.items() if repr(value) in line]
    return "".join([*quoted[:1], line])[:200]
