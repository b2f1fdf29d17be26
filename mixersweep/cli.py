"""The command line: one verb a function. Each imports what it needs when it is called, torch only to train."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import mixersweep
from mixersweep.errors import DIVERGED, DONE, FAILED, INTERRUPTED, USER_MISTAKE, MixersweepError, RunStopped, UserError

if TYPE_CHECKING:
    from mixersweep.config import Config
    from mixersweep.runs import Origin, RunDirectory
    from mixersweep.training.signals import StopSignals


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit code; a user's mistake is one line on stderr, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["train"] and "_ARGCOMPLETE" not in os.environ:
            return train(arguments[1:])  # everything behind it is Hydra's
        return _parse_and_run(arguments)
    except MixersweepError as error:
        return _told(error)
    except KeyboardInterrupt:
        _report("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


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
            _report(f"note: {warning}")
        outcomes.append(_execute(RunDirectory.create(run, Path(config.runs_dir)), signals))

    def failed(error: Exception) -> None:
        """One run of a sweep did not complete: say so, and let the others go on."""
        if not isinstance(error, MixersweepError):
            traceback.print_exception(error)
        outcomes.append(_told(error) if isinstance(error, MixersweepError) else FAILED)

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
        _report(f"already done: {directory.run.name}")
        print(directory.path / "result.json", flush=True)
        return DONE
    if status.state == "diverged":
        _report(f"{directory.run.name}: diverged before ({status.error}); not taken up again")
        return DIVERGED
    if status.state == "cancelled":
        _report(f"{directory.run.name}: cancelled; not taken up again")
        return FAILED
    _report(_summary(directory))

    from mixersweep.training.loop import train as train_run

    try:
        path = train_run(directory, signals, _report)
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


def data_list(options: argparse.Namespace) -> int:
    """``data list``: which data sets are ready, where, and how large."""
    from mixersweep.data import listing

    print(f"{'data':18} {'ready':6} {'size':>9}  where")
    for row in listing(options.data_dir):
        print(f"{row.name:18} {'yes' if row.ready else 'no':6} {row.size_bytes / 1e6:6.1f} MB  {row.where}")
    return DONE


def data_prepare(options: argparse.Namespace) -> int:
    """``data prepare NAME``: fetch, check and convert a data set once."""
    from mixersweep.data import prepare

    print(prepare(options.name, options.data_dir, _report))
    return DONE


def bench(options: argparse.Namespace) -> int:
    """``bench SUITE``: measure layers or steps against their named alternatives."""
    import json

    import torch

    from mixersweep.bench import SUITES, measure
    from mixersweep.training.environment import choose_device, choose_threads, keep_freed_memory

    keep_freed_memory()
    device = choose_device(options.device)
    torch.set_num_threads(choose_threads("auto"))
    for case in SUITES[options.suite](options.all):
        record = measure(case, device)
        if options.json:
            print(json.dumps(record), flush=True)
            continue
        sizes = " ".join(f"{key}={value}" for key, value in case.sizes.items() if value is not None)
        print(f"{record['ratio']:8.3g}x  {case.benchmark:28} {case.mode:9} {sizes}", flush=True)
    return DONE


def completion(options: argparse.Namespace) -> int:
    """``completion SHELL``: print what the shell has to source."""
    import argcomplete

    print(argcomplete.shellcode(["mixersweep"], shell=options.shell))  # type: ignore[attr-defined]
    return DONE


def _parser() -> argparse.ArgumentParser:
    from mixersweep import completer

    parser = argparse.ArgumentParser(prog="mixersweep", description=mixersweep.__doc__)
    parser.add_argument("--version", action="version", version=f"mixersweep {mixersweep.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = verbs.add_parser("train", add_help=False, help="train a network: mixersweep train model=pk width=1024")
    for flags in (["-m", "--multirun"], ["-h", "--help"], ["--hydra-help"], ["--resolve"]):
        verb.add_argument(*flags, action="store_true")
    verb.add_argument("--cfg", choices=("job", "hydra", "all"))
    verb.add_argument("overrides", nargs="*").completer = completer.overrides  # type: ignore[attr-defined]

    verb = verbs.add_parser("data", help="list the data sets, or prepare one")
    actions = verb.add_subparsers(metavar="ACTION", required=True)
    directory = argparse.ArgumentParser(add_help=False)
    directory.add_argument("--data-dir", type=_directory, default=_directory(), help="also MIXERSWEEP_DATA")
    action = actions.add_parser("list", parents=[directory], help="what is ready, and where")
    action.set_defaults(run=data_list)
    action = actions.add_parser("prepare", parents=[directory], help="fetch, check and convert a data set")
    action.add_argument("name", metavar="NAME").completer = completer.data_sets  # type: ignore[attr-defined]
    action.set_defaults(run=data_prepare)

    verb = verbs.add_parser("bench", help="measure speed against named alternatives")
    verb.add_argument("suite", choices=("layers", "step"))
    verb.add_argument("--json", action="store_true", help="one object a line and nothing else")
    verb.add_argument("--all", action="store_true", help="also what takes minutes")
    verb.add_argument("--device", default="auto")
    verb.set_defaults(run=bench)

    verb = verbs.add_parser("completion", help='for the shell: eval "$(mixersweep completion bash)"')
    verb.add_argument("shell", choices=("bash", "zsh", "fish"))
    verb.set_defaults(run=completion)
    return parser


def _parse_and_run(arguments: list[str]) -> int:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options="long")
    if not arguments:
        parser.print_help()
        return USER_MISTAKE
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def _directory(path: str | None = None) -> Path:
    return Path(path or os.environ.get("MIXERSWEEP_DATA") or "~/.cache/mixersweep").expanduser()


def _report(text: str) -> None:
    print(f"mixersweep: {text}", file=sys.stderr, flush=True)


def _told(error: MixersweepError) -> int:
    """Print the one line of an expected end, and return its exit code."""
    if os.environ.get("MIXERSWEEP_DEBUG"):
        traceback.print_exception(error)
    _report(f"error: {error}" if error.exit_code != INTERRUPTED else str(error))
    return error.exit_code
