"""Hand runs over to a launcher: a run that a launching process has claimed is ``queued`` until it trains.

Its ``status.json`` then names that process; once the run is passed on to a scheduler, it names the job instead.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import psutil

from mixersweep.runs import State, Status, read_status, set_status
from mixersweep.runs.status import status_lock, this_host
from mixersweep.sweeps.launchers import LOG


def is_held_elsewhere(status: Status) -> bool:
    """Whether another live process trains the run or has queued it."""
    if status.is_alive or status.is_stopping:
        return True
    is_own = (status.host, status.pid) == (this_host(), os.getpid())
    return status.state is State.QUEUED and not is_own and dataclasses.replace(status, state=State.RUNNING).is_alive


def claim(run_dir: Path) -> Status | None:
    """Mark the run ``queued`` by this process; returns its earlier status, or None if it is over or taken."""
    with status_lock(run_dir):
        earlier = read_status(run_dir)
        if earlier.state.is_over or is_held_elsewhere(earlier):
            return None
        now = time.time()
        started = psutil.Process().create_time()
        set_status(run_dir, Status(State.QUEUED, this_host(), os.getpid(), started, since=now, heartbeat=now))
        return earlier


def restore(run_dir: Path, earlier: Status) -> None:
    """Restore the earlier status of a run that was handed over but never began."""
    _replace_queued(run_dir, earlier)


def assign_to_job(run_dir: Path, job: str) -> None:
    """Assign a run that this process has queued, or that was preempted, to a scheduler's job."""
    with status_lock(run_dir):
        stored = read_status(run_dir)
        if stored.state is State.PREEMPTED or _is_queued_here(stored):
            set_status(run_dir, Status(State.QUEUED, since=time.time(), job=job))


def fail(run_dir: Path, error: str) -> None:
    """Mark a run ``failed`` that this process has queued and that never began."""
    _replace_queued(run_dir, Status(State.FAILED, error=error))


def fail_unstarted(run_dir: Path, code: int | None) -> None:
    """Mark a run ``failed`` if it is still queued although its process ended, with an exit code other than 0 or None.

    A negative code is the number of the signal that killed it.
    """
    if code:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        fail(run_dir, f"its process {how} before it began; see {LOG}")


def _replace_queued(run_dir: Path, status: Status) -> None:
    with status_lock(run_dir):
        if _is_queued_here(read_status(run_dir)):
            set_status(run_dir, status)


def _is_queued_here(status: Status) -> bool:
    return (status.state, status.host, status.pid) == (State.QUEUED, this_host(), os.getpid())
