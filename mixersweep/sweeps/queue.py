"""Handing runs over: a run that a launching process has taken is ``queued`` in its ``status.json`` until it trains."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import psutil

from mixersweep.runs import FINAL_STATES, Status, read_status, set_status
from mixersweep.runs.status import guard, this_host


def is_elsewhere(status: Status) -> bool:
    """Whether another live process trains the run, or has it in its queue."""
    if status.alive or status.stopping:
        return True
    mine = (status.host, status.pid) == (this_host(), os.getpid())
    return status.state == "queued" and not mine and dataclasses.replace(status, state="running").alive


def hand_over(run_dir: Path) -> Status | None:
    """Make the run ``queued`` by this process; returns what it was before, or None where it is not to be had."""
    with guard(run_dir):
        before = read_status(run_dir)
        if before.state in FINAL_STATES or is_elsewhere(before):
            return None
        now = time.time()
        started = psutil.Process().create_time()
        set_status(run_dir, Status("queued", this_host(), os.getpid(), started, since=now, heartbeat=now))
        return before


def take_back(run_dir: Path, before: Status) -> None:
    """Make a run that was handed over and never began what it was before."""
    _replace_queued(run_dir, before)


def fail(run_dir: Path, error: str) -> None:
    """A run whose process ended before it could say anything itself."""
    _replace_queued(run_dir, Status("failed", error=error))


def _replace_queued(run_dir: Path, status: Status) -> None:
    with guard(run_dir):
        stored = read_status(run_dir)
        if (stored.state, stored.host, stored.pid) == ("queued", this_host(), os.getpid()):
            set_status(run_dir, status)
