"""Processes that talk to W&B for another one, which waits for them no longer than it was told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

import psutil

GRACE = 1.0
"""Seconds from asking processes to end until they are killed; W&B needs them to close its file."""


def start(command: Sequence[str], log: Path, told: str = "") -> tuple[subprocess.Popen[bytes], int]:
    """Start a process out of reach of the terminal's Ctrl-C, its output appended to ``log`` from the byte returned.

    It reads ``told`` from its stdin. It has this environment, with this package importable from anywhere and what
    ``settle`` says.
    """
    environment = dict(os.environ)
    settle(environment)
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment["PYTHONSAFEPATH"] = "1"  # what lies in the working directory is no module of anybody's
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file, tempfile.TemporaryFile("w+") as stdin:  # a pipe would wait for a reader
        stdin.write(told)
        stdin.seek(0)
        begins = file.tell()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, begins


def settle(environment: MutableMapping[str, str]) -> None:
    """For a process that is about to import wandb: no other service to share, no reports on its use."""
    environment.setdefault("WANDB_ERROR_REPORTING", "false")
    environment.pop("WANDB_SERVICE", None)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children (wandb-core is in a session of its own); one that has ended is left as it is."""
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
    """Kill all processes below this one but Python's own, which cleans up after the others and ends by itself."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()


def last_words(log: Path, begins: int, prefix: str) -> str | None:
    """The last line that was said from there on with this beginning, without it."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(begins)
        for line in reversed(file.read().decode(errors="replace").splitlines()):
            if line.startswith(prefix):
                return line.removeprefix(prefix)
    return None


def _each(processes: list[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(process)
