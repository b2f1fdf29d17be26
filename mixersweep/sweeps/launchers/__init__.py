"""Launchers: where the runs of a sweep are executed, chosen by ``hydra/launcher=``.

A launcher is given run directories and executes ``python -m mixersweep train run_dir=DIR`` for each in a separate
process, whose output it appends to ``DIR/log.txt``. It needs to know nothing else: a run's directory holds both its
settings and its results.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixersweep.errors import UserError

LOG = "log.txt"
"""The file in a run directory that collects the output of all processes that trained the run."""

GIVEN_GPU = "MIXERSWEEP_GPU"
"""The environment variable that marks a run for which a GPU was requested, so that it does not silently use a CPU."""

LAUNCHERS = {name: f"mixersweep.sweeps.launchers.{name}" for name in ("local", "slurm", "ray")}
"""The module of each launcher; it defines ``launcher(settings, folder)`` and is imported when it is chosen."""


class StopRequest(Protocol):
    """Tells whether a signal has asked this process to stop (as ``training.signals.StopSignals`` does)."""

    def check(self) -> None:
        """Raise ``RunStopped`` if a signal has arrived; a second Ctrl-C raises ``KeyboardInterrupt`` at once."""


class Launcher(Protocol):
    """Executes runs, each of which is in the state ``queued`` when it is handed over."""

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Execute the run directories in this order, and also wait for the runs that ``queued`` last returned.

        ``report`` is called with one line whenever a run ends. Returns True when all runs have ended, successfully or
        not, and False when a scheduler continues them without this process. When ``stop`` raises, the launcher asks the
        runs to stop, waits for them and raises the same exception; runs in a scheduler's queue continue.
        """

    def queued(self, jobs: Sequence[Path]) -> Collection[Path]:
        """Return those of the runs that an earlier command put in a scheduler's queue and that are still there."""


def make(values: Mapping[str, Any], folder: Path) -> Launcher:
    """Build the launcher from the settings under ``hydra.launcher``.

    ``folder`` is the sweep's, for files that belong to no single run. Raises ``UserError`` for an unknown launcher.
    """
    name = values.get("name")
    if name not in LAUNCHERS:
        raise UserError(
            f"hydra/launcher={name}: the runs of a sweep take {', '.join(LAUNCHERS)}; "
            "Hydra's own launchers go with hydra/sweeper=basic, optuna and their like"
        )
    made: Launcher = importlib.import_module(LAUNCHERS[name]).launcher(values, folder)
    return made
