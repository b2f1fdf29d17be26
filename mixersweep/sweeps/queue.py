"""Hand runs over to a launcher: a run that a launching process has claimed is ``queued`` until it trains.

Its ``status.json`` then names that process; once the run is passed on to a scheduler, it names the job instead.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import psutil

from mixersweep.runs import State, Status, read_status, set_status
from mixersweep.runs.status import status_lock, this_host


def is_elsewhere(status: Status) -> bool:
    """Whether another live process trains the run or has queued it."""
    if status.is_alive or status.is_stopping:
        return True
    mine = (status.host, status.pid) == (this_host(), os.getpid())
    return status.state is State.QUEUED and not mine and dataclasses.replace(status, state=State.RUNNING).is_alive


def hand_over(run_dir: Path) -> Status | None:
    """Mark the run ``queued`` by this process; returns its earlier status, or None if it is over or taken."""
    with status_lock(run_dir):
        before = read_status(run_dir)
        if before.state.is_over or is_elsewhere(before):
            return None
        now = time.time()
        started = psutil.Process().create_time()
        set_status(run_dir, Status(State.QUEUED, this_host(), os.getpid(), started, since=now, heartbeat=now))
        return before


def take_back(run_dir: Path, before: Status) -> None:
    """Restore the earlier status of a run that was handed over but never began."""
    _replace_queued(run_dir, before)


def pass_on(run_dir: Path, job: str) -> None:
    """Assign a run that this process has queued, or that was preempted, to a scheduler's job."""
    with status_lock(run_dir):
        stored = read_status(run_dir)
        if stored.state is State.PREEMPTED or _is_queued_here(stored):
            set_status(run_dir, Status(State.QUEUED, since=time.time(), job=job))


def fail(run_dir: Path, error: str) -> None:
    """Mark a run ``failed`` whose process ended before it could record anything itself."""
    _replace_queued(run_dir, Status(State.FAILED, error=error))


def _replace_queued(run_dir: Path, status: Status) -> None:
    with status_lock(run_dir):
        if _is_queued_here(read_status(run_dir)):
            set_status(run_dir, status)


def _is_queued_here(status: Status) -> bool:
    return (status.state, status.host, status.pid) == (State.QUEUED, this_host(), os.getpid())
