"""The command ``mixersweep train``, which trains one network, or with ``-m`` many."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep import completer
from mixersweep.cli.terminal import report_error, say
from mixersweep.errors import DIVERGED, DONE, FAILED, USER_MISTAKE, MixersweepError, RunFailed, UserError
from mixersweep.processor import torchrun_number

if TYPE_CHECKING:
    from mixersweep.compose import Invocation
    from mixersweep.runs import RunDirectory
    from mixersweep.training.parallel import World
    from mixersweep.training.signals import StopSignals


def add(verbs: Any) -> None:
    """Add ``train`` to the parser, for help and completion only: Hydra parses its arguments."""
    verb = verbs.add_parser("train", add_help=False, help="train a network: mixersweep train model=pk width=1024")
    settings = verb.add_argument("overrides", nargs="*", metavar="key=value", help="an experiment means many runs")
    settings.completer = completer.overrides
    verb.add_argument("-m", "--multirun", action="store_true", help="every combination of values with commas between")
    verb.add_argument("--config-dir", metavar="DIR", help="more choices, e.g. DIR/experiment/NAME.yaml")
    verb.add_argument("--cfg", choices=("job", "hydra", "all"), help="print the settings (job), train nothing")
    verb.add_argument("--dry-run", action="store_true", help="print the script of a Slurm job, submit nothing")
    verb.add_argument("--resolve", action="store_true", help="with --cfg: values in place of references")
    verb.add_argument("-h", "--help", action="store_true", help="all settings with their defaults")
    verb.add_argument("--hydra-help", action="store_true", help="Hydra's own flags")


def train(arguments: list[str]) -> int:
    """Train one network, or with ``-m`` or an experiment many (``train [key=value ...]``); returns the exit code."""
    from mixersweep.training.signals import StopSignals

    signals = StopSignals().install()
    if any(argument.startswith("run_dir=") for argument in arguments):
        return _train_directories(arguments, signals)

    from mixersweep.compose import config_dir_arguments, read_arguments

    is_dry = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    invocation = read_arguments(arguments)
    if invocation.multirun:
        from mixersweep.tracking import leave_agent

        leave_agent()
    arguments = [*config_dir_arguments(invocation.user_dir), *invocation.overrides]
    if is_dry and (invocation.is_for_hydra or not invocation.multirun):
        raise UserError("--dry-run: prints the script of a sweep on Slurm; plan says what a run would cost")
    if invocation.is_for_hydra:
        return _run_by_hydra(invocation, signals)
    if not invocation.multirun:
        return _train_one(arguments, signals)[0]
    if torchrun_number("WORLD_SIZE", 1) > 1:
        raise UserError("torchrun trains one run in several processes; start a sweep without it, on one GPU a run")
    if is_dry:
        return _show_scripts(arguments)
    from mixersweep.sweeps.sweeper import sweep

    return sweep(arguments, signals, say, lambda path: print(path, flush=True))


def _train_one(arguments: list[str], signals: StopSignals) -> tuple[int, float | None]:
    """Train the run that the overrides mean; returns its exit code, and its validation accuracy if it has one."""
    from mixersweep.runs import RunDirectory
    from mixersweep.sweeps.expand import expand_one
    from mixersweep.training.resume import check

    (point,) = expand_one(arguments, multirun=False).points
    run = point.run
    assert run is not None
    check(run, say)
    directories: list[RunDirectory] = []

    def open_directory() -> RunDirectory:
        directories.append(RunDirectory.create(run, Path(run.config.runs_dir)))
        return directories[0]

    code = _train_to_end(open_directory, signals)
    record = directories[0].result() or {} if directories else {}
    return code, record.get("validation_accuracy")


def _run_by_hydra(invocation: Invocation, signals: StopSignals) -> int:
    """Let Hydra print its information, or another Hydra sweeper train runs one after another; returns the exit code."""
    from mixersweep.compose import DIVERGED_ACCURACY, run_app

    outcomes: list[int] = []

    def job(arguments: list[str]) -> float | None:
        code, accuracy = _train_one(arguments, signals)
        outcomes.append(code)
        return DIVERGED_ACCURACY if code == DIVERGED else accuracy

    def failed(error: Exception) -> None:
        """Report a run that did not complete, so that the others go on."""
        if not isinstance(error, MixersweepError):
            traceback.print_exception(error)
        outcomes.append(report_error(error) if isinstance(error, MixersweepError) else FAILED)

    run_app(invocation, job, failed)
    if outcomes and set(outcomes) == {USER_MISTAKE}:
        return USER_MISTAKE
    return DONE if not any(outcomes) else FAILED


def _show_scripts(overrides: list[str]) -> int:
    """Print the scripts that ``sbatch`` would get (``train -m --dry-run``)."""
    from mixersweep.sweeps.cluster import batch_scripts, resolve_auto
    from mixersweep.sweeps.expand import expand

    print("\n".join(batch_scripts(resolve_auto(expand(overrides, multirun=True)))), end="")
    return DONE


def _train_directories(arguments: list[str], signals: StopSignals) -> int:
    """Train the run of a directory, or several as one pack (``train run_dir=DIR ...``); returns the exit code."""
    from mixersweep.runs import RunDirectory
    from mixersweep.training.resume import frozen

    paths = frozen(arguments)
    if len(paths) == 1:
        return _train_to_end(lambda: RunDirectory.open(paths[0]), signals)
    if torchrun_number("WORLD_SIZE", 1) > 1:
        raise UserError(f"run_dir={paths[1]}: torchrun trains one run in several processes; start it for each")
    return _train_pack([RunDirectory.open(path) for path in paths], signals)


def _train_pack(directories: list[RunDirectory], signals: StopSignals) -> int:
    """Train the unfinished runs as one pack; returns the exit code that all share, else ``FAILED``."""
    end_codes = {directory.path: _end_code(directory) for directory in directories}
    left = [directory for directory in directories if end_codes[directory.path] is None]
    codes = [code for code in end_codes.values() if code is not None]
    if left:
        from mixersweep.training.resume import summary

        say(summary(left[0]) + (f"\nand {len(left) - 1} more of this program" if len(left) > 1 else ""))

        from mixersweep.training.trainer import train_pack

        for directory, error in zip(left, train_pack(left, signals, say), strict=True):
            if error is None:
                print(directory.path / "result.json", flush=True)
                codes.append(DONE)
            elif isinstance(error, MixersweepError):
                codes.append(report_error(error) if len(left) == 1 else error.exit_code)
            else:
                raise error
    return codes[0] if len(set(codes)) == 1 else FAILED


def _train_to_end(open_directory: Callable[[], RunDirectory], signals: StopSignals) -> int:
    """Train the rest of a run, and print the path of its result once it is completed; returns the exit code."""
    if torchrun_number("WORLD_SIZE", 1) > 1:
        return _train_to_end_in_processes(open_directory, signals)
    directory = open_directory()
    code = _end_code(directory)
    return _train(directory, signals) if code is None else code


def _train_to_end_in_processes(open_directory: Callable[[], RunDirectory], signals: StopSignals) -> int:
    """Train a run in several processes started by torchrun: the first decides what to do and tells the others."""
    from mixersweep.training.parallel import World

    world = World()
    try:
        if not world.is_first:
            instruction = world.broadcast(None)
            return instruction if isinstance(instruction, int) else _train_other_rank(instruction, signals, world)
        try:
            directory = open_directory()
            code = _end_code(directory)
        except MixersweepError as error:
            world.broadcast(error.exit_code)
            raise
        world.broadcast(directory if code is None else code)
        return _train(directory, signals, world) if code is None else code
    finally:
        world.close()


def _train_other_rank(directory: RunDirectory, signals: StopSignals, world: World) -> int:
    """Train as a torchrun process of rank above 0, which prints nothing but its own failure."""
    from mixersweep.training.trainer import train as train_run

    try:
        train_run(directory, signals, lambda _: None, world)
    except RunFailed as error:
        return report_error(RunFailed(f"process {world.rank} of {world.size}: {error}"))
    except MixersweepError as error:
        return error.exit_code
    return DONE


def _end_code(directory: RunDirectory) -> int | None:
    """Return the exit code of a run that has ended already and report how, or None for one to train."""
    from mixersweep.training.resume import ended

    end = ended(directory, say)
    if isinstance(end, Path):
        print(end, flush=True)
        return DONE
    if end is not None:
        say(str(end))
        return end.exit_code
    return None


def _train(directory: RunDirectory, signals: StopSignals, world: World | None = None) -> int:
    from mixersweep.training.resume import resume

    print(resume(directory, signals, say, world), flush=True)
    return DONE
