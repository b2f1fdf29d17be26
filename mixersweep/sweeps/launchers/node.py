"""Execute runs side by side on a machine that a scheduler chose, and stop them when it asks for that.

``slurm_job`` and ``ray`` share this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from mixersweep import processor
from mixersweep.errors import HELD, PREEMPTED
from mixersweep.sweeps.launchers import StopRequest
from mixersweep.sweeps.launchers.local import Slot, Supervisor
from mixersweep.sweeps.packs import Pack
from mixersweep.tracking.job import mirror_of_job

STOPPED = (-10, -12, -15)
"""Exit codes of processes that SIGUSR1, SIGUSR2 or SIGTERM ended before they had installed a handler."""


def execute(
    made: Sequence[Pack], slots: Sequence[Slot], stop: StopRequest, report: Callable[[str], None]
) -> dict[Path, int | None]:
    """Execute packs of runs, as many at once as there are slots; returns the exit code of each run's process.

    A code is None if unknown. When ``stop`` raises, asks the runs to stop, waits for them, and raises the same.
    """
    codes: dict[Path, int | None] = {}
    with mirror_of_job([run_dir for pack in made for run_dir in pack], report) as mirror:
        supervisor = Supervisor(len(made) > 1, mirror)
        try:
            supervisor.execute(deque(made), slots, stop, lambda pack, code: codes.update(dict.fromkeys(pack, code)))
        finally:
            supervisor.end()
    return codes


def is_to_go_on(code: int | None) -> bool:
    """Whether a run with this exit code was only stopped, or held by another process, and so has to be continued."""
    return code in (HELD, PREEMPTED, *STOPPED)


def slots(count: int, cpus: int | None, gpus: Sequence[str], first: int = 0) -> list[Slot]:
    """Divide ``cpus`` cores (None: all that this process may use) and the GPUs into ``count`` slots.

    If the scheduler does not bind a job to its cores, job number ``first`` takes those from number ``first * cpus`` on,
    so that jobs with other numbers on the same machine take other cores.
    """
    cores = processor.cores()
    if cpus is not None and cpus < len(cores):
        cores = [cores[(first * cpus + i) % len(cores)] for i in range(cpus)]
    share = max(1, len(cores) // count)
    own = [tuple(sorted({cores[(i * share + k) % len(cores)] for k in range(share)})) for i in range(count)]
    return [Slot(own[i], {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(count)]
