"""What a process that a scheduler started on some machine does there: execute runs beside each other, and stop them.

Shared by the launchers whose scheduler decides where and when (``slurm_job``, ``ray``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from mixersweep import processor
from mixersweep.errors import HELD, PREEMPTED
from mixersweep.sweeps.launchers import StopRequest
from mixersweep.sweeps.launchers.local import Slot, Supervisor
from mixersweep.sweeps.packs import Pack

STOPPED = (-10, -12, -15)
"""Codes of processes that USR1, USR2 or TERM ended before they could handle it."""


def execute(made: Sequence[Pack], slots: Sequence[Slot], stop: StopRequest) -> dict[Path, int | None]:
    """Execute packs of runs, each in its slot and all at once; returns for each run the exit code of its process.

    When ``stop`` raises, asks the runs to stop, waits for them, and raises the same.
    """
    codes: dict[Path, int | None] = {}
    supervisor = Supervisor(warm=len(made) > 1)
    try:
        supervisor.execute(deque(made), slots, stop, lambda pack, code: codes.update(dict.fromkeys(pack, code)))
    finally:
        supervisor.end()
    return codes


def is_to_go_on(code: int | None) -> bool:
    """Whether a run that ended with this code was only stopped, or held by another process."""
    return code in (HELD, PREEMPTED, *STOPPED)


def slots(count: int, cpus: int | None, gpus: Sequence[str], first: int = 0) -> list[Slot]:
    """Places for ``count`` runs that share ``cpus`` cores (None: all that are left to this process) and some GPUs.

    Where the scheduler does not bind a job to its cores, it takes those from the ``first`` times ``cpus``-th on, so
    that neighbours, which count on, take others.
    """
    cores = processor.cores()
    if cpus is not None and cpus < len(cores):
        cores = [cores[(first * cpus + i) % len(cores)] for i in range(cpus)]
    share = max(1, len(cores) // count)
    own = [tuple(sorted({cores[(i * share + k) % len(cores)] for k in range(share)})) for i in range(count)]
    return [Slot(own[i], {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(count)]
