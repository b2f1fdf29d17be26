"""Start and end the processes that talk to W&B for another process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

import psutil

GRACE = 1.0
"""Seconds from asking processes to end until they are killed, in which W&B closes its file."""


def start(
    command: Sequence[str], log: Path, stdin_text: str = "", pipe: int | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that the terminal's Ctrl-C does not reach, with its output appended to ``log``.

    Its stdin is ``stdin_text``, or the reading end of a ``pipe``, and its environment is this one, prepared for wandb
    and with this package importable from anywhere. Returns the process and the size of the log before.
    """
    environment = dict(os.environ)
    prepare_environment(environment)
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment["PYTHONSAFEPATH"] = "1"  # no file in the working directory shadows a module
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file, tempfile.TemporaryFile("w+") as stdin:  # a pipe would wait for a reader
        stdin.write(stdin_text)
        stdin.seek(0)
        begins = file.tell()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin if pipe is None else pipe,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, begins


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Prepare the environment of a process that will import wandb: no service of another process, no error reports."""
    environment.setdefault("WANDB_ERROR_REPORTING", "false")
    environment.pop("WANDB_SERVICE", None)


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process and its children, wandb-core in its own session included; do nothing where it has ended."""
    try:
        root = psutil.Process(process.pid) if process.poll() is None else None
        family = [root, *root.children(recursive=True)] if root else []
    except psutil.NoSuchProcess:
        family = []
    try:
        _each(family, psutil.Process.terminate)
        psutil.wait_procs(family, timeout=GRACE)
    finally:
        _each(family, psutil.Process.kill)
        process.wait()


def end_workers() -> None:
    """Kill all descendants of this process but Python's resource tracker, which cleans up and ends by itself."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()


def last_line(log: Path, begins: int, prefix: str) -> str | None:
    """The last line of a log, from byte ``begins`` on, that starts with ``prefix``, without it; None without one."""
    return last_lines(log, begins, prefix)[0]


def last_lines(log: Path, begins: int, *prefixes: str) -> list[str | None]:
    """For each prefix the last line of a log that starts with it, as ``last_line`` gives it."""
    lines: list[str] = []
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(begins)
        lines = file.read().decode(errors="replace").splitlines()[::-1]
    return [next((line.removeprefix(p) for line in lines if line.startswith(p)), None) for p in prefixes]


def _each(processes: list[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(process)
