"""Time the first training steps of each shape of run, as many at once as the launcher would (``plan --measure``).

Each is timed (``training/timing.py``) in a process that has the cores of a run; only those processes import torch.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any

from mixersweep import processor
from mixersweep.errors import MixersweepError, UserError
from mixersweep.runs import Run
from mixersweep.sweeps.times import shape_of


def measure(runs: Sequence[Run], at_once: int, threads: int, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Time each distinct shape among the runs and yield its entry for the calibration file (times in seconds).

    Raises ``UserError`` if a run cannot be trained here, because its data or its device are missing.
    """
    distinct = list({shape_of(run): run for run in runs}.values())
    context = multiprocessing.get_context("spawn")
    allotments = processor.allot(processor.cores(), threads, at_once)
    with context.Manager() as manager:
        free_cores = manager.Queue()
        for cores in allotments:
            free_cores.put(cores)
        with ProcessPoolExecutor(len(allotments), context, initializer=_set_up_process, initargs=(free_cores,)) as pool:
            copies = len(allotments) if len(distinct) == 1 else 1  # a single shape runs beside its copies
            waiting = [pool.submit(_time_run, run) for run in distinct * copies]
            try:
                for number, future in enumerate(as_completed(waiting), start=1):
                    entry = future.result()
                    report(f"timed {number} of {len(waiting)}: {entry['model']} width={entry['width']}")
                    yield entry
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _set_up_process(free_cores: Any) -> None:
    """Bind a new process to its cores before it imports torch, which counts them only once."""
    own_cores = free_cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own_cores)
    import mixersweep.training.timing  # noqa: F401


def _time_run(run: Run) -> dict[str, Any]:
    import torch

    from mixersweep.training.environment import choose_device
    from mixersweep.training.timing import time_training

    try:
        timing = time_training(run)
    except MixersweepError as error:
        raise UserError(f"{run.config.model.name} width={run.architecture.width}: {error}") from None
    device = choose_device(run.config.device)
    return {
        "shape": shape_of(run),
        "model": run.config.model.name,
        "width": run.architecture.width,
        "epoch": timing.epoch,
        "training": timing.training,
        "set_up": timing.set_up,
        "device_kind": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": str(torch.__version__),
    }
