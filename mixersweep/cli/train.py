"""``mixersweep train``: one network, or with ``-m`` many."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep import completer
from mixersweep.cli.terminal import report, told
from mixersweep.errors import DIVERGED, DONE, FAILED, USER_MISTAKE, MixersweepError, RunStopped, UserError

if TYPE_CHECKING:
    from mixersweep.config import Config
    from mixersweep.runs import Origin, RunDirectory
    from mixersweep.training.signals import StopSignals


def add(verbs: Any) -> None:
    """For help and completion; what stands behind ``train`` is parsed by Hydra."""
    verb = verbs.add_parser("train", add_help=False, help="train a network: mixersweep train model=pk width=1024")
    for flags in (["-m", "--multirun"], ["-h", "--help"], ["--hydra-help"], ["--resolve"]):
        verb.add_argument(*flags, action="store_true")
    verb.add_argument("--cfg", choices=("job", "hydra", "all"))
    verb.add_argument("overrides", nargs="*").completer = completer.overrides


def train(arguments: list[str]) -> int:
    """``train [key=value ...]``: train one network, or with ``-m`` every combination, one after another."""
    from mixersweep.training.signals import StopSignals

    signals = StopSignals().install()
    taken_up = [argument for argument in arguments if argument.startswith("run_dir=")]
    if taken_up:
        return _take_up(taken_up[0], arguments, signals)

    from mixersweep.compose import run_app

    outcomes: list[int] = []

    def job(config: Config, origin: Origin) -> None:
        from mixersweep.config import warnings
        from mixersweep.runs import RunDirectory, solve

        run = solve(config, origin)
        for warning in warnings(config, run.architecture):
            report(f"note: {warning}")
        outcomes.append(_execute(RunDirectory.create(run, Path(config.runs_dir)), signals))

    def failed(error: Exception) -> None:
        """One run of a sweep did not complete: say so, and let the others go on."""
        if not isinstance(error, MixersweepError):
            traceback.print_exception(error)
        outcomes.append(told(error) if isinstance(error, MixersweepError) else FAILED)

    multirun = run_app(arguments, job, failed)
    if not multirun:
        return outcomes[0] if outcomes else DONE
    if outcomes and set(outcomes) == {USER_MISTAKE}:
        return USER_MISTAKE
    return DONE if not any(outcomes) else FAILED


def _take_up(setting: str, arguments: list[str], signals: StopSignals) -> int:
    from mixersweep.runs import RunDirectory

    others = [argument for argument in arguments if argument != setting]
    if others:
        raise UserError(f"{others[0]}: run_dir= takes up a run as it was frozen; leave out everything else")
    return _execute(RunDirectory.open(Path(setting.partition("=")[2]).expanduser().absolute()), signals)


def _execute(directory: RunDirectory, signals: StopSignals) -> int:
    """Train what is left of a run; print the path of its result when it is completed."""
    status = directory.status()
    if status.state == "completed":
        report(f"already done: {directory.run.name}")
        print(directory.path / "result.json", flush=True)
        return DONE
    if status.state == "diverged":
        report(f"{directory.run.name}: diverged before ({status.error}); not taken up again")
        return DIVERGED
    if status.state == "cancelled":
        report(f"{directory.run.name}: cancelled; not taken up again")
        return FAILED
    report(_summary(directory))

    from mixersweep.training.loop import train as train_run

    try:
        path = train_run(directory, signals, report)
    except RunStopped as stopped:
        done = len(directory.rows())
        text = f"{stopped} after epoch {done} of {directory.run.config.epochs}; the same command goes on from there"
        raise RunStopped(text, stopped.exit_code) from None
    print(path, flush=True)
    return DONE


def _summary(directory: RunDirectory) -> str:
    run = directory.run
    a = run.architecture
    shape = f"tokens={a.tokens} channels={a.channels} " if a.tokens else ""
    return (
        f"{run.config.model.name}: {shape}width={a.width} connections={a.connections} density={a.density:.4g} "
        f"parameters={a.parameters:,} (stem {a.stem_parameters:,}, mixing {a.mixing_parameters:,}, "
        f"head {a.head_parameters:,})\n{directory.path}"
    )
