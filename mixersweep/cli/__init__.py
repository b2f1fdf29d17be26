"""The command line: one module per verb, whose ``add`` declares its arguments.

A module imports what it needs when its verb is called, and torch only to train and to measure.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import os
import sys
from typing import NoReturn

import mixersweep
from mixersweep.cli import analyze, bench, data, plan, status, train
from mixersweep.cli import report as report_verbs
from mixersweep.cli import wandb as wandb_verbs
from mixersweep.cli.terminal import report_error, say
from mixersweep.errors import DONE, INTERRUPTED, USER_MISTAKE, MixersweepError

VERBS = (train, plan, status, report_verbs, wandb_verbs, analyze, data, bench)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit code; a user's mistake is one line on stderr, never a traceback."""
    _settle_streams()
    code = _exit_code(sys.argv[1:] if arguments is None else arguments)
    if os.environ.get("WORLD_SIZE") not in (None, "", "1"):
        _leave(code)
    return code


def _settle_streams() -> None:
    """Reopen closed standard streams (``>&-``), whose descriptors the next file would take, and make all encodable."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115
        elif descriptor and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _leave(code: int) -> NoReturn:
    """End this process like ``sys.exit``, but without finalising the interpreter.

    gloo's threads outlive their process group (torch 2.14: DistributedDataParallel keeps a reference), and one that
    frees a tensor during finalisation aborts the process, whereupon torchrun ends the others.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed by its reader, or here
            stream.flush()
    os._exit(code)


def _exit_code(arguments: list[str]) -> int:
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; a notebook's own backend may be missing here
    try:
        if arguments[:1] == ["train"] and "_ARGCOMPLETE" not in os.environ:
            return train.train(arguments[1:])  # all further arguments are Hydra's
        code = _parse_and_run(arguments)
        sys.stdout.flush()
        return code
    except MixersweepError as error:
        return report_error(error)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed our output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        if error.filename is None and error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else its buffer is written again at exit
        return report_error(
            MixersweepError(f"{error.filename or 'stdout'}: cannot be written or read: {error.strerror}")
        )


def completion(options: argparse.Namespace) -> int:
    """``completion SHELL``: print the completion script for the shell to source."""
    import argcomplete

    print(argcomplete.shellcode(["mixersweep"], shell=options.shell))  # type: ignore[attr-defined]
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mixersweep", description=mixersweep.__doc__)
    parser.add_argument("--version", action="version", version=f"mixersweep {mixersweep.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add(verbs)
    shells = verbs.add_parser("completion", help='for the shell: eval "$(mixersweep completion bash)"')
    shells.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose code is printed")
    shells.set_defaults(run=completion)
    return parser


def _parse_and_run(arguments: list[str]) -> int:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options="long")
    if not arguments:
        parser.print_help()
        return USER_MISTAKE
    options, rest = parser.parse_known_args(arguments)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest  # overrides after a flag
    code: int = options.run(options)
    return code
