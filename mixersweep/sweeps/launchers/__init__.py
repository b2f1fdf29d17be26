"""Launchers: where the runs of a sweep are executed, chosen by ``hydra/launcher=``.

A launcher is given run directories and executes ``python -m mixersweep train run_dir=DIR`` for each in a separate
process, whose output it appends to ``DIR/log.txt``. It needs to know nothing else: a run's directory holds both its
settings and its results.

To add a launcher takes a module here with the functions of ``LauncherModule``, its name in ``LAUNCHERS``, and its
settings in ``configs/hydra/launcher/NAME.yaml``, among them ``name: NAME``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from mixersweep.errors import UserError

if TYPE_CHECKING:
    from mixersweep.config import Config

LAUNCHERS = ("local", "slurm", "ray")
"""The names of the launchers, which are modules here; one is imported when it is chosen."""

LOG = "log.txt"
"""The file in a run directory that collects the output of all processes that trained the run."""

GPU_REQUESTED = "MIXERSWEEP_GPU"
"""The environment variable that marks a run for which a GPU was requested, so that it does not silently use a CPU."""

PROGRAM = Path(__file__).parents[3]
"""The directory that this process imports mixersweep from."""


def python_path(program: Path = PROGRAM) -> str:
    """Return a value for ``PYTHONPATH`` with which a new process imports mixersweep from the directory ``program``."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(filter(None, [str(program), *others])))


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
        """Return those of the runs that an earlier command put in a scheduler's queue and that are still there.

        None are, unless a launcher says otherwise: its queue ends with its process, which ``sweeps.queue`` detects.
        """
        del jobs
        return ()


class Capacity(NamedTuple):
    """How many packs of runs a launcher trains at once, as far as is known on this machine.

    ``on_gpu`` tells whether they train on GPUs, and ``cores`` is the number of CPU cores of each. The machines of a
    cluster are unknown here: then ``at_once`` is 1 and ``cores`` is None.
    """

    on_gpu: bool
    packs_per_gpu: int = 1
    at_once: int = 1
    cores: int | None = None


class LauncherModule(Protocol):
    """The functions that the module of a launcher defines.

    ``values`` are the settings under ``hydra.launcher``; both functions raise ``UserError`` if they are invalid.
    """

    def launcher(self, values: Mapping[str, Any], folder: Path) -> Launcher:
        """Build the launcher; ``folder`` is the sweep's, for files that belong to no single run."""

    def capacity(self, values: Mapping[str, Any], run_config: Config, jobs: int) -> Capacity:
        """Return the capacity for ``jobs`` runs with the device and threads of ``run_config``; trains nothing."""


def check_launcher(name: str) -> None:
    """Raise ``UserError`` for an unknown launcher."""
    if name not in LAUNCHERS:
        raise UserError(
            f"hydra/launcher={name}: the runs of a sweep take {', '.join(LAUNCHERS)}; "
            "Hydra's own launchers go with hydra/sweeper=basic, optuna and their like"
        )


def module_of(name: str) -> LauncherModule:
    """Import the module of the launcher with this name; raises ``UserError`` for an unknown launcher."""
    check_launcher(name)
    return cast("LauncherModule", importlib.import_module(f"{__name__}.{name}"))
