"""Mending: runs that the same command shall take up again (``retry``), or never more (``cancel``)."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

from mixersweep.paths import sweeps_dir
from mixersweep.runs import Status, read_status, set_status
from mixersweep.runs.files import read_json
from mixersweep.runs.listing import Listed
from mixersweep.runs.state import State
from mixersweep.runs.status import guard, this_host
from mixersweep.sweeps.launchers import slurm
from mixersweep.tracking.identity import read_identity, write_identity

RETRIED = tuple(state for state in State if state.may_be_retried)

OF_TRAINING = ("checkpoint*", "metrics.jsonl", "probes.jsonl", "predictions.npz", "result.json")
"""The files that training leaves in a run directory."""


def retry(path: Path, states: Collection[State] = RETRIED, *, keep_checkpoint: bool = False) -> tuple[bool, str]:
    """Make a run of these states ``planned`` again; whether it is now, and what was done or why nothing was.

    A failed, lost or cancelled run goes on from its last checkpoint. A diverged one starts anew (as another run at its
    mirror), since what it had learnt led there; with ``keep_checkpoint`` it goes on like the others.
    """
    with guard(path):
        status = read_status(path)
        if status.shown not in states:
            return False, f"is {status.shown} now: left alone"
        if status.stopping:
            return False, f"is cancelled, but {status.holder} has not stopped yet: left alone"
        anew = status.state is State.DIVERGED and not keep_checkpoint
        if anew:
            _start_anew(path)
        set_status(path, Status(State.PLANNED))
    if anew:
        return True, f"was {status.shown}: starts anew"
    kept = any(path.glob("checkpoint*"))
    return True, f"was {status.shown}: " + (
        "goes on from its checkpoint" if kept else "starts anew, without a checkpoint"
    )


def cancel(path: Path) -> tuple[bool, str]:
    """Mark a run that has not ended ``cancelled`` and stop its process; whether it is now, and what was done.

    A process on this host is told by a signal (TERM), one elsewhere finds it in the run directory with its next
    heartbeat. A Slurm job that has nothing else to do is cancelled too.
    """
    with guard(path):
        status = read_status(path)
        if status.state.is_over:
            return False, f"is {status.state}: left alone"
        is_known = status.host in (None, this_host())  # of another host's process, its own look at the state tells
        kept = status if status.alive or not is_known else dataclasses.replace(status, pid=None, pid_started=None)
        set_status(path, dataclasses.replace(kept, state=State.CANCELLED))
    if status.alive and status.host == this_host():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(status.pid)
            if process.create_time() == status.pid_started:
                process.terminate()
        return True, f"cancelled: {status.holder} is told to stop"
    job = ""
    if status.job is not None and (status.alive or status.state is State.QUEUED):
        is_released = slurm.release(path, status.job)
        job = f", and job {status.job}" if is_released else f"; job {status.job} ends when it has nothing else to do"
    if status.alive:
        return True, f"cancelled{job}: {status.holder} stops at its next heartbeat"
    return True, f"was {status.shown}: cancelled{job}"


def commands(runs: Iterable[Listed]) -> list[str]:
    """What takes these runs up again: the command of each sweep that left one, else one a run."""
    found = []
    for run in runs:
        sweep = run.planned.get("sweep")
        stored = read_json(sweeps_dir(run.path.parent) / sweep / "sweep.json") if sweep else None
        one = f"mixersweep train run_dir={shlex.quote(str(run.path))}"
        found.append(stored["command"] if isinstance(stored, dict) and stored.get("command") else one)
    return list(dict.fromkeys(found))


def _start_anew(path: Path) -> None:
    for pattern in OF_TRAINING:
        for left in path.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
    if (path / "tracking.json").exists():
        write_identity(path, read_identity(path).redrawn())
