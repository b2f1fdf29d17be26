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

STOPPED_CODES = (-10, -12, -15)
"""Exit codes of processes that SIGUSR1, SIGUSR2 or SIGTERM ended before they had installed a handler."""


def execute(
    folder: Path, packs: Sequence[Pack], slots: Sequence[Slot], stop: StopRequest, report: Callable[[str], None]
) -> dict[Path, int | None]:
    """Execute packs of runs, as many at once as there are slots; returns the exit code of each run's process.

    A code is None if unknown. When ``stop`` raises, asks the runs to stop, waits for them, and raises the same.
    ``folder`` is the sweep's.
    """
    codes: dict[Path, int | None] = {}
    with mirror_of_job([run_dir for pack in packs for run_dir in pack], folder, report) as mirror:
        supervisor = Supervisor(folder.name, len(packs) > 1, mirror)
        try:
            supervisor.execute(deque(packs), slots, stop, lambda pack, code: codes.update(dict.fromkeys(pack, code)))
        finally:
            supervisor.shut_down()
    return codes


def is_to_continue(code: int | None) -> bool:
    """Whether a run with this exit code was only stopped, or held by another process, and so has to be continued."""
    return code in (HELD, PREEMPTED, *STOPPED_CODES)


def slots(slot_count: int, cpus: int | None, gpus: Sequence[str], job_index: int = 0) -> list[Slot]:
    """Divide ``cpus`` cores (None: all that this process may use) and the GPUs into ``slot_count`` slots.

    If the scheduler does not bind a job to its cores, job number ``job_index`` takes the ``cpus`` cores from number
    ``job_index * cpus`` on, so that jobs with other numbers on the same machine take other cores.
    """
    cores = processor.cores()
    if cpus is not None and cpus < len(cores):
        cores = [cores[(job_index * cpus + i) % len(cores)] for i in range(cpus)]
    allotments = processor.allot(cores, max(1, len(cores) // slot_count), slot_count)
    environments = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(slot_count)]
    return [
        Slot(tuple(sorted(set(own))), environment) for own, environment in zip(allotments, environments, strict=True)
    ]
