"""Change the state of runs: make them trainable again (``retry``), or stop them for good (``cancel``)."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mixersweep.errors import UserError
from mixersweep.paths import sweeps_dir
from mixersweep.runs import Status, read_status, set_status
from mixersweep.runs.files import read_json
from mixersweep.runs.listing import Listed
from mixersweep.runs.state import State
from mixersweep.runs.status import status_lock
from mixersweep.sweeps.launchers import slurm_queue
from mixersweep.sweeps.many import map_parallel
from mixersweep.tracking.identity import read_identity, write_identity

RETRIABLE = tuple(state for state in State if state.may_be_retried)

TRAINING_FILES = ("checkpoint*", "metrics.jsonl", "probes.jsonl", "predictions.npz", "result.json")
"""The files that training leaves in a run directory."""


def retry(
    path: Path,
    states: Collection[State] = RETRIABLE,
    *,
    keep_checkpoint: bool = False,
    listed: Listed | None = None,
) -> tuple[bool, str]:
    """Make a run ``planned`` again if it is in one of these states; returns whether it was changed, and a message.

    A failed, lost or cancelled run will continue from its last checkpoint. A diverged one will start from scratch, and
    as a new run in the tracker, since its weights are useless; ``keep_checkpoint`` makes it continue too. ``listed``
    adds what the directory does not tell: a run that is queued there has failed if its Slurm job is gone.
    """
    with status_lock(path):
        status = read_status(path)
        state = listed.state if listed is not None and listed.status == status else status.shown
        if state not in states:
            return False, f"is {state} now: left alone"
        if status.is_stopping:
            return False, f"is cancelled, but {status.holder} has not stopped yet: left alone"
        from_scratch = status.state is State.DIVERGED and not keep_checkpoint
        if from_scratch:
            _reset_training(path)
        set_status(path, Status(State.PLANNED))
    if from_scratch:
        return True, f"was {state}: starts anew"
    if any(path.glob("checkpoint*")):
        return True, f"was {state}: goes on from its checkpoint"
    return True, f"was {state}: starts anew, without a checkpoint"


def cancel(paths: Sequence[Path], step: Callable[[], None] = lambda: None) -> list[tuple[bool, str]]:
    """Mark unfinished runs ``cancelled`` and stop their processes; returns of each whether it was, and a message.

    A process on this host gets SIGTERM; one on another host sees the mark at its next heartbeat. Slurm jobs that are
    left without unfinished runs are cancelled, all at once. ``step`` is called after each run that was marked.
    """
    earlier = {}
    for path, status in zip(paths, map_parallel(_mark_cancelled, paths), strict=True):
        earlier[path] = status
        step()
    queued = {path: status.job for path, status in earlier.items() if _has_slurm_job(status)}
    jobs = _list_jobs() if queued else []
    cancelled = slurm_queue.cancel_jobs(list(queued), jobs or [])
    live_ids = None if jobs is None else {job.id for job in jobs}
    messages = []
    for path, status in earlier.items():
        if status.state.is_over:
            messages.append((False, f"is {status.state}: left alone"))
            continue
        job_text = ""
        if (name := queued.get(path)) is not None:
            job_text = f", and job {name}" if name in cancelled else f"; job {name} {_describe_job(name, live_ids)}"
        if status.is_alive and status.is_on_this_host:
            message = f"cancelled: {status.holder} is told to stop"
        elif status.is_alive:
            message = f"cancelled{job_text}: {status.holder} stops at its next heartbeat"
        else:
            message = f"was {status.shown}: cancelled{job_text}"
        messages.append((True, message))
    return messages


def _describe_job(job: str, live_ids: Collection[str] | None) -> str:
    """Describe in words what happens to the Slurm job of a cancelled run that was not cancelled itself."""
    if live_ids is not None and job not in live_ids:
        return "was gone"
    text = "ends when it has nothing else to do"
    return f"{text}; Slurm cannot be asked here" if live_ids is None else text


def _mark_cancelled(path: Path) -> Status:
    """Mark an unfinished run ``cancelled`` and signal its process on this host; returns its earlier status."""
    with status_lock(path):
        status = read_status(path)
        if status.state.is_over:
            return status
        is_known = status.host is None or status.is_on_this_host  # another host's process reads the mark itself
        signalled = (
            status if status.is_alive or not is_known else dataclasses.replace(status, pid=None, pid_started=None)
        )
        set_status(path, dataclasses.replace(signalled, state=State.CANCELLED, error=None))
    if status.is_alive and status.is_on_this_host:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(status.pid)
            if process.create_time() == status.pid_started:
                process.terminate()
    return status


def _has_slurm_job(status: Status) -> bool:
    return not status.state.is_over and status.job is not None and not (status.is_alive and status.is_on_this_host)


def _list_jobs() -> list[slurm_queue.Job] | None:
    """List this user's Slurm jobs, or return None if Slurm cannot be queried."""
    if shutil.which("squeue") is None:
        return None
    try:
        return slurm_queue.squeue()
    except UserError:
        return None


def resume_commands(runs: Iterable[Listed]) -> list[str]:
    """Return the shell commands that continue these runs: one for each recorded sweep, and one for each other run."""
    shell_commands = []
    for run in runs:
        sweep = run.planned.get("sweep")
        stored = read_json(sweeps_dir(run.path.parent) / sweep / "sweep.json") if sweep else None
        own_command = f"mixersweep train run_dir={shlex.quote(str(run.path))}"
        shell_commands.append(_add_cd(stored) if isinstance(stored, dict) and stored.get("command") else own_command)
    return list(dict.fromkeys(shell_commands))


def _add_cd(stored: Mapping[str, Any]) -> str:
    """Return the command of a sweep, after a ``cd`` if it was typed in another directory than this."""
    directory = stored.get("directory")
    if directory is None or Path(directory) == Path.cwd():
        return str(stored["command"])
    return f"cd {shlex.quote(directory)} && {stored['command']}"


def _reset_training(path: Path) -> None:
    for pattern in TRAINING_FILES:
        for file in path.glob(pattern):
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()
    if (path / "tracking.json").exists():
        write_identity(path, read_identity(path).redrawn())
