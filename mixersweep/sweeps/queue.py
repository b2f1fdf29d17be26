"""Handing runs over: a run that a launching process has taken is ``queued`` in its ``status.json`` until it trains.

One that it passed on to a scheduler is ``queued`` by no process, and names the scheduler's job.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import psutil

from mixersweep.runs import State, Status, read_status, set_status
from mixersweep.runs.status import guard, this_host


def is_elsewhere(status: Status) -> bool:
    """Whether another live process trains the run, or has it in its queue."""
    if status.alive or status.stopping:
        return True
    mine = (status.host, status.pid) == (this_host(), os.getpid())
    return status.state is State.QUEUED and not mine and dataclasses.replace(status, state=State.RUNNING).alive


def hand_over(run_dir: Path) -> Status | None:
    """Make the run ``queued`` by this process; returns what it was before, or None where it is not to be had."""
    with guard(run_dir):
        before = read_status(run_dir)
        if before.state.is_over or is_elsewhere(before):
            return None
        now = time.time()
        started = psutil.Process().create_time()
        set_status(run_dir, Status(State.QUEUED, this_host(), os.getpid(), started, since=now, heartbeat=now))
        return before


def take_back(run_dir: Path, before: Status) -> None:
    """Make a run that was handed over and never began what it was before."""
    _replace_queued(run_dir, before)


def pass_on(run_dir: Path, job: str) -> None:
    """Leave a run that this process has queued, or stopped, to a scheduler's job."""
    with guard(run_dir):
        stored = read_status(run_dir)
        if stored.state is State.PREEMPTED or _is_queued_here(stored):
            set_status(run_dir, Status(State.QUEUED, since=time.time(), job=job))


def fail(run_dir: Path, error: str) -> None:
    """A run whose process ended before it could say anything itself."""
    _replace_queued(run_dir, Status(State.FAILED, error=error))


def _replace_queued(run_dir: Path, status: Status) -> None:
    with guard(run_dir):
        if _is_queued_here(read_status(run_dir)):
            set_status(run_dir, status)


def _is_queued_here(status: Status) -> bool:
    return (status.state, status.host, status.pid) == (State.QUEUED, this_host(), os.getpid())
