"""``plan --measure``: really train the first steps of each shape, as many at once as the launcher would have.

Each is taken by the trainer itself, in a run directory that is thrown away, in a process that has the cores of a run;
a stopwatch sits where the trainer looks for signals, once a step. Imports torch, in those processes only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep import processor
from mixersweep.errors import MixersweepError, UserError
from mixersweep.runs import Run, RunDirectory
from mixersweep.sweeps.times import shape_of

if TYPE_CHECKING:
    from mixersweep.training.signals import StopSignals

ENOUGH_SECONDS, ENOUGH_STEPS = 3.0, 8
"""A shape is timed for at least so long and so many steps, after two that warm up."""

WARM_UP = 2
EVALUATION = 0.35
"""The cost of an evaluated image over that of a trained one, where no whole epoch was timed."""


def measure(runs: Sequence[Run], at_once: int, threads: int, told: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """An entry of the calibration for each distinct shape among the runs, as they come.

    Raises ``UserError`` where a run cannot be trained here (its data are missing, its device is not there).
    """
    distinct = list({shape_of(run): run for run in runs}.values())
    context = multiprocessing.get_context("spawn")
    places = _places(at_once, threads)
    with context.Manager() as manager:
        free = manager.Queue()
        for place in places:
            free.put(place)
        with ProcessPoolExecutor(len(places), context, initializer=_begin, initargs=(free,)) as pool:
            tasks = distinct * (len(places) if len(distinct) == 1 else 1)  # so that it, too, has neighbours
            waiting = [pool.submit(_measure, run) for run in tasks]
            try:
                for number, future in enumerate(as_completed(waiting), start=1):
                    entry = future.result()
                    told(f"timed {number} of {len(waiting)}: {entry['model']} width={entry['width']}")
                    yield entry
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _places(at_once: int, threads: int) -> list[list[int]]:
    """The cores of each of the processes."""
    cores = processor.cores()
    return [[cores[(i * threads + k) % len(cores)] for k in range(threads)] for i in range(at_once)]


def _begin(free: Any) -> None:
    """A process takes its cores before it loads torch, which asks for them once."""
    cores = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    import mixersweep.training.loop  # noqa: F401


def _measure(run: Run) -> dict[str, Any]:
    from mixersweep.errors import RunStopped
    from mixersweep.training.loop import train

    tracking = dataclasses.replace(run.config.tracking, name="none")
    with tempfile.TemporaryDirectory(prefix="mixersweep-plan-") as folder:
        config = dataclasses.replace(run.config, tracking=tracking, runs_dir=folder)
        directory = RunDirectory.create(dataclasses.replace(run, config=config), Path(folder))
        watch = _stopwatch(directory)
        quiet = io.StringIO()
        began = time.monotonic()
        try:
            with contextlib.redirect_stderr(quiet):
                train(directory, watch, lambda _: None)
        except RunStopped:
            pass
        except MixersweepError as error:
            raise UserError(f"{run.config.model.name} width={run.architecture.width}: {error}") from None
        rows = directory.rows()
    return _entry(run, rows, watch.times, began)  # type: ignore[attr-defined]


def _stopwatch(directory: RunDirectory) -> StopSignals:
    """Signals whose check notes the time, and asks the run to stop when there is enough.

    A GPU is waited for where counting begins and ends, and nowhere else.
    """
    import torch

    from mixersweep.errors import PREEMPTED, RunStopped
    from mixersweep.training.signals import StopSignals

    def synchronize() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    class Stopwatch(StopSignals):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def check(self) -> None:
            if len(self.times) == WARM_UP:
                synchronize()
            self.times.append(time.monotonic())
            steps = len(self.times) - 1 - WARM_UP
            if steps < ENOUGH_STEPS or self.times[-1] - self.times[WARM_UP] < ENOUGH_SECONDS:
                return
            if len(directory.rows()) == 1:  # a short epoch: the next one is timed as a whole
                return
            synchronize()
            self.times[-1] = time.monotonic()
            raise RunStopped("timed", PREEMPTED)

    return Stopwatch()


def _entry(run: Run, rows: Sequence[dict[str, Any]], times: list[float], began: float) -> dict[str, Any]:
    """What was timed: whole epochs from the second on where there are such, else steps of the first."""
    import torch

    from mixersweep.training.environment import choose_device

    config = run.config
    trained = round(config.data.train_images * (1 - config.validation))
    evaluated = config.data.train_images - trained + config.data.test_images
    steps = -(-trained // config.batch_size)
    if len(rows) >= 2:
        later = [second["time"] - first["time"] for first, second in itertools.pairwise(rows)]
        epoch, training = statistics.fmean(later), statistics.fmean(row["seconds"] for row in rows[1:])
    else:
        counted = times[min(WARM_UP, len(times) - 2) : steps]
        if len(counted) < 2:
            counted = times[:2]
        training = (counted[-1] - counted[0]) / (len(counted) - 1) * steps
        epoch = training * (1 + EVALUATION * evaluated / trained)
    device = choose_device(config.device)
    return {
        "shape": shape_of(run),
        "model": config.model.name,
        "width": run.architecture.width,
        "epoch": epoch,
        "training": training,
        "set_up": max(0.0, times[0] - began - training / steps),
        "device_kind": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": str(torch.__version__),
    }
