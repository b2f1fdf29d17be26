"""Launchers: where the runs of a sweep are executed, chosen by ``hydra/launcher=``.

A launcher is given run directories and executes ``python -m mixersweep train run_dir=DIR`` for each, in a process of
its own whose output it appends to ``DIR/log.txt``. It knows nothing else: what a run is stands in its directory, and
so does what became of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixersweep.errors import UserError

LOG = "log.txt"
"""In a run directory: all that its processes said."""

GIVEN_GPU = "MIXERSWEEP_GPU"
"""In the environment of a run for which somebody asked for a GPU, so that it does not train without one unnoticed."""

LAUNCHERS = {name: f"mixersweep.sweeps.launchers.{name}" for name in ("local", "slurm", "ray")}
"""Modules with a ``launcher(settings, folder)``, imported when they are chosen."""


class StopRequest(Protocol):
    """Whether a signal has asked this process to stop (``training.signals.StopSignals``)."""

    def check(self) -> None:
        """Raise ``RunStopped`` where it has; a second Ctrl-C raises ``KeyboardInterrupt`` at once."""


class Launcher(Protocol):
    """Executes runs. The state of each is ``queued`` when it is handed over."""

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Execute the run directories in this order, and wait for those that ``queued`` found last as for them.

        ``report`` takes a line when one ends. Returns True when all have ended, however they ended, and False when they
        are queued and go on by themselves. When ``stop`` raises, asks the runs to stop in good order, waits for them,
        and raises the same; those of a scheduler's queue go on.
        """

    def queued(self, jobs: Sequence[Path]) -> Collection[Path]:
        """Those of the runs that stand in the queue of a scheduler, handed over by an earlier command."""


def make(values: Mapping[str, Any], folder: Path) -> Launcher:
    """The launcher that the settings under ``hydra.launcher`` mean; ``folder`` is for what is of no single run."""
    name = values.get("name")
    if name not in LAUNCHERS:
        raise UserError(
            f"hydra/launcher={name}: the runs of a sweep take {', '.join(LAUNCHERS)}; "
            "Hydra's own launchers go with hydra/sweeper=basic, optuna and their like"
        )
    made: Launcher = importlib.import_module(LAUNCHERS[name]).launcher(values, folder)
    return made
