"""Measure how long training takes on this machine, for ``bench``, ``plan --measure`` and ``analyze cost``.

Steps are timed in the real training loop, on the run's own data, in a temporary run directory: the stopwatch replaces
the check for signals, which the loop calls once a step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixersweep.errors import PREEMPTED, RunStopped
from mixersweep.runs import Run, RunDirectory
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train

ENOUGH_SECONDS, ENOUGH_STEPS = 3.0, 8
"""A run is timed for at least so many seconds and so many steps, after ``WARM_UP`` steps."""

WARM_UP = 2
EVALUATION = 0.35
"""The assumed cost of evaluating an image relative to training on it, used if no whole epoch was timed."""


@dataclass(frozen=True)
class Timed:
    """Measured seconds: of an epoch, of its training alone, and of the set-up; ``steps`` is how many were timed."""

    epoch: float
    training: float
    set_up: float
    steps: int


def time_training(run: Run) -> Timed:
    """Time the first steps of a run by training them; raises the errors of ``trainer.train``, except ``RunStopped``."""
    tracking = dataclasses.replace(run.config.tracking, name="none")
    with tempfile.TemporaryDirectory(prefix="mixersweep-time-") as folder:
        config = dataclasses.replace(run.config, tracking=tracking, runs_dir=folder)
        directory = RunDirectory.create(dataclasses.replace(run, config=config), Path(folder))
        watch = _Stopwatch(directory)
        began = time.monotonic()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(RunStopped):
            train(directory, watch, lambda _: None)
        return _timed(run, directory.rows(), watch.times, began)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The seconds that one call takes, measured on the GPU itself if ``device`` is one."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class _Stopwatch(StopSignals):
    """A stand-in for ``StopSignals`` whose check records the time, and stops the run after enough steps.

    It waits for the GPU only where timing begins and ends.
    """

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__()
        self.times: list[float] = []
        self._directory = directory

    def check(self) -> None:
        """Record the time; the training loop calls this after each step."""
        if len(self.times) == WARM_UP:
            _wait()
        self.times.append(time.monotonic())
        steps = len(self.times) - 1 - WARM_UP
        if steps < ENOUGH_STEPS or self.times[-1] - self.times[WARM_UP] < ENOUGH_SECONDS:
            return
        if len(self._directory.rows()) == 1:  # a short epoch: the next one is timed as a whole
            return
        _wait()
        self.times[-1] = time.monotonic()
        raise RunStopped("timed", PREEMPTED)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(run: Run, rows: Sequence[dict[str, Any]], times: list[float], began: float) -> Timed:
    """Compute the result: from whole epochs after the first if there are any, else from steps of the first."""
    config = run.config
    trained = round(config.data.train_images * (1 - config.validation))
    evaluated = config.data.train_images - trained + config.data.test_images
    steps = -(-trained // config.batch_size)
    if len(rows) >= 2:
        later = [second["time"] - first["time"] for first, second in itertools.pairwise(rows)]
        epoch, training = statistics.fmean(later), statistics.fmean(row["seconds"] for row in rows[1:])
        counted = steps * len(later)
    else:
        some = times[min(WARM_UP, len(times) - 2) : steps]
        if len(some) < 2:
            some = times[:2]
        counted = len(some) - 1
        training = (some[-1] - some[0]) / counted * steps
        epoch = training * (1 + EVALUATION * evaluated / trained)
    return Timed(epoch, training, max(0.0, times[0] - began - training / steps), counted)
