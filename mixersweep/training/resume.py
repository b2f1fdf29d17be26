"""Resume a run from wherever it stands, for the command line and for Python; torch is imported only to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixersweep.config import warnings
from mixersweep.errors import MixersweepError, RunCancelled, RunDiverged, RunStopped, UserError
from mixersweep.paths import expand_home
from mixersweep.runs import Run, RunDirectory
from mixersweep.runs.state import State
from mixersweep.runs.status import observe_heartbeats
from mixersweep.training.refusal import refuse
from mixersweep.training.signals import StopSignals

if TYPE_CHECKING:
    from mixersweep.training.parallel import World

Report = Callable[[str], None]


def check(run: Run, report: Report) -> None:
    """Report warnings about a run's settings; raises ``UserError`` if it cannot be trained."""
    refuse(run.config)
    for warning in warnings(run.config, run.architecture):
        report(f"note: {warning}")


def frozen(arguments: Sequence[str]) -> list[Path]:
    """The run directories of the arguments ``run_dir=DIR ...``, each once; raises ``UserError`` for other arguments."""
    for argument in arguments:
        if not argument.startswith("run_dir="):
            raise UserError(f"{argument}: run_dir= takes up a run as it was frozen; leave out everything else")
    return [expand_home(argument.partition("=")[2], "run_dir").absolute() for argument in dict.fromkeys(arguments)]


def ended(directory: RunDirectory, report: Report) -> Path | MixersweepError | None:
    """The path of a completed run's record, or the error of a run that is never resumed; None for all others.

    Rows that are not yet in its W&B mirror are sent there.
    """
    observe_heartbeats([directory.path], report)
    status, name = directory.status(), directory.run.name
    if status.state in (State.COMPLETED, State.DIVERGED):
        from mixersweep.tracking import replay

        replay(directory, report)
    if status.state is State.COMPLETED:
        report(f"already done: {name}{_elsewhere(directory)}")
        return directory.path / "result.json"
    if status.state is State.DIVERGED:
        return RunDiverged(f"{name}: diverged before ({status.error}); not taken up again")
    return RunCancelled(f"{name}: cancelled; not taken up again") if status.state is State.CANCELLED else None


def _elsewhere(directory: RunDirectory) -> str:
    """Note for the report that a run was trained on images in another folder than now set; empty if the same."""
    now, before = directory.run.config.data, RunDirectory.open(directory.path).run.config.data.root
    if now.root == before:
        return ""
    alike = "" if "-" in (now.content or "-") else " of these names (data prepare tells their content too)"
    return f"; it saw the images{alike} in {before or now.name}, not those in {now.root or now.name}"


def resume(directory: RunDirectory, signals: StopSignals, report: Report, world: World | None = None) -> Path:
    """Train the remaining epochs of a run and return the path of its record.

    Raises the errors of ``trainer.train``; ``RunStopped`` says how far it came.
    """
    report(summary(directory))

    from mixersweep.training.trainer import train

    try:
        return train(directory, signals, report, world)
    except RunStopped as stopped:
        done = len(directory.rows())
        text = f"{stopped} after epoch {done} of {directory.run.config.epochs}; the same command goes on from there"
        raise RunStopped(text, stopped.exit_code) from None


def summary(directory: RunDirectory) -> str:
    """Two lines: the network of a run with its sizes, and the path of its directory."""
    run = directory.run
    a = run.architecture
    shape = f"tokens={a.tokens} channels={a.channels} " if a.tokens else ""
    return (
        f"{run.config.model.name}: {shape}width={a.width} connections={a.connections} density={a.density:.4g} "
        f"parameters={a.parameters:,} (stem {a.stem_parameters:,}, mixing {a.mixing_parameters:,}, "
        f"head {a.head_parameters:,})\n{directory.path}"
    )
