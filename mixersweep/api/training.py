"""Train one run or many from Python and read what they left, in the same directories as the command.

While a function here trains, this process's signals ask it to stop, as they do the command: the first Ctrl-C ends the
step under way, writes a checkpoint and raises ``RunStopped``, a second raises ``KeyboardInterrupt`` at once. The same
call again goes on from there. Afterwards handlers and torch's settings are as they were before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.api.settings import overrides_of, say
from mixersweep.errors import USER_MISTAKE, MixersweepError, UserError
from mixersweep.paths import expand_home
from mixersweep.processor import torchrun_number
from mixersweep.runs import RunDirectory
from mixersweep.runs.directory import read_rows
from mixersweep.runs.listing import Listed, read_listed
from mixersweep.runs.state import State
from mixersweep.sweeps import sweeper
from mixersweep.sweeps.expand import expand, expand_one
from mixersweep.training.resume import check, ended, frozen, resume
from mixersweep.training.signals import StopSignals

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import nn


class TrainedRun:
    """A run in its directory, completed or not; each attribute is read from disk anew."""

    def __init__(self, path: str | Path) -> None:
        self.path = expand_home(path).absolute()

    def __repr__(self) -> str:
        accuracy = self.record["test_accuracy"]
        return f"<TrainedRun {self.name}: {self.state}" + (">" if accuracy is None else f", test {accuracy:.4f}>")

    @property
    def name(self) -> str:
        """The run's name, which is its directory's."""
        return self.path.name

    @property
    def state(self) -> State:
        """The state of the run: ``completed``, ``interrupted``, ``failed`` and so on; ``new`` without a directory."""
        listed = read_listed(self.path)
        return State.NEW if listed is None else listed.state

    @property
    def error(self) -> str | None:
        """The error that ended the run, or None."""
        return self._listed.reason or self._listed.status.error

    @property
    def record(self) -> dict[str, Any]:
        """Every key of ``result.json``; None for what is known only of a completed run."""
        return self._listed.record

    @property
    def metrics(self) -> DataFrame:
        """Losses, accuracies and speed, with a row for each epoch."""
        from pandas import DataFrame

        return DataFrame(read_rows(self.path / "metrics.jsonl"))

    @property
    def probes(self) -> DataFrame:
        """Measurements inside the network during training (setting ``probes``), with a row for each probed epoch."""
        from pandas import DataFrame

        return DataFrame(read_rows(self.path / "probes.jsonl"))

    @property
    def predictions(self) -> dict[str, NDArray[Any]]:
        """The arrays of ``predictions.npz`` over the N test images, among them ``prediction`` and ``label`` (N,).

        Raises ``UserError`` for a run that is not completed.
        """
        path = self.path / "predictions.npz"
        if not path.exists():
            raise UserError(f"{self.path}: has no predictions, which come with the end of training; it is {self.state}")
        with np.load(path) as stored:
            return dict(stored)

    def network(self, epoch: int | None = None) -> nn.Module:
        """Load the network after ``epoch`` epochs, in evaluation mode; None is the end of training, 0 its start.

        Raises ``UserError`` where the weights of that epoch are not there.
        """
        from mixersweep.analysis.subjects import Subject

        return Subject(self._listed).network(epoch)

    @property
    def _listed(self) -> Listed:
        listed = read_listed(self.path)
        if listed is None:
            raise UserError(f"{self.path}: is no run directory; it has no config.yaml")
        return listed


def train(*overrides: str, **settings: object) -> TrainedRun:
    """Train the run that settings mean, or resume it; a completed run is returned at once.

    ``train(model="pk", width=1024, epochs=5)``: the settings are those of the command line, as for ``plan``, and
    ``run_dir=...`` alone takes up a run as it stands. Raises ``UserError`` for settings that cannot be, ``RunDiverged``
    and ``RunFailed`` where the run ended so, and ``RunStopped`` after a signal.
    """
    arguments = overrides_of(overrides, settings)
    if torchrun_number("WORLD_SIZE", 1) > 1:
        raise UserError("WORLD_SIZE: only the command trains in several processes: torchrun -m mixersweep train ...")
    directory = _open_directory(arguments)
    ending = ended(directory, say)
    if isinstance(ending, MixersweepError):
        raise ending
    if ending is None:
        from mixersweep.training.environment import left_as_found

        with StopSignals().installed() as signals, left_as_found():
            resume(directory, signals, say)
    return TrainedRun(directory.path)


def sweep(*overrides: str, **settings: object) -> list[TrainedRun]:
    """Train the sweep of runs that settings mean, or resume it, and return all runs in order.

    A list, tuple or range is values to sweep over: ``sweep(model=["pk", "sw_mlp"], width=[512, 1024], seed=range(3))``
    is every combination, ``sweep(experiment="small_width")`` the grids of an experiment, each in processes of their own
    as ``hydra.launcher`` says. Those that did not complete are among them, with their ``state`` and ``error``. Raises
    ``UserError`` for settings that cannot be, and ``RunStopped`` after a signal.
    """
    arguments = overrides_of(overrides, settings, several=True)
    with StopSignals().installed() as signals:
        code = sweeper.sweep(arguments, signals, say, lambda _: None)
    expansion = expand(arguments, multirun=True)  # once more, since a search has chosen learning rates meanwhile
    if code == USER_MISTAKE:
        reasons = [point.infeasible for point in expansion.points if point.infeasible is not None]
        raise UserError("; ".join(dict.fromkeys([*reasons, *expansion.notices])))
    return [TrainedRun(point.run_dir) for point in expansion.points if point.run_dir is not None]


def _open_directory(arguments: list[str]) -> RunDirectory:
    """The directory of the one run, made if it is new."""
    if any(override.startswith("run_dir=") for override in arguments):
        paths = frozen(arguments)
        if len(paths) > 1:
            raise UserError(f"run_dir={paths[1]}: one run at a time; call train for each")
        return RunDirectory.open(paths[0])
    (point,) = expand_one(arguments).points
    assert point.run is not None
    check(point.run, say)
    return RunDirectory.create(point.run, Path(point.run.config.runs_dir))
