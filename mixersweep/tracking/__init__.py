"""The mirror of a run in Weights & Biases, written by a process of its own (``mirror``) out of the run directory.

Training writes its run directory and nothing else; that process reads it. So nothing that W&B does, be it dead, slow
or absent, changes a run, ends it, or delays its end past ``tracking.timeout``. Imports neither torch nor wandb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from mixersweep.config.schema import Tracking
from mixersweep.runs import RunDirectory
from mixersweep.tracking.identity import LOG, of_agent, without_agent, write_identity

__all__ = ["Mirror", "leave_agent", "replay", "start"]

GRACE = 1.0
"""Seconds from asking the processes of a mirror to end until they are killed; W&B needs them to close its file."""


def start(directory: RunDirectory, report: Callable[[str], None]) -> Mirror:
    """Mirror the run that this process holds from now on; with ``tracking=none`` the mirror does nothing.

    Under ``wandb agent`` the run takes the agent's id. Never raises for what the mirror cannot do: that is one line to
    ``report``.
    """
    tracking = directory.run.config.tracking
    mirror = Mirror(directory.path, tracking.timeout, report)
    if tracking.name == "wandb":
        try:
            identity = of_agent()
            if identity is not None:
                write_identity(directory.path, identity)
            mirror.spawn(tracking)
        except OSError as error:
            report(f"W&B: no mirror ({error}); the run directory is complete without it")
    return mirror


def replay(directory: RunDirectory, report: Callable[[str], None]) -> None:
    """Under ``wandb agent``, which wants the metrics of each run that it starts, send those of one that has ended."""
    if of_agent() is not None:
        start(directory, report).finish()


def leave_agent() -> None:
    """For a command that trains many runs: they are none of the agent's, each has a W&B run of its own."""
    kept = without_agent(os.environ.items())
    for name in set(os.environ) - set(kept):
        del os.environ[name]


class Mirror:
    """The process that mirrors one run, as its training sees it."""

    def __init__(self, run_dir: Path, timeout: float, report: Callable[[str], None]) -> None:
        self._run_dir = run_dir
        self._timeout = timeout
        self._report = report
        self._log = run_dir / "wandb" / LOG
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, tracking: Tracking) -> None:
        """Start the process, out of reach of the terminal's Ctrl-C; what it says goes to ``wandb/mirror.log``."""
        self._log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mixersweep.tracking", str(self._run_dir), f"--parent={os.getpid()}"]
        command += [f"--tracking={json.dumps(dataclasses.asdict(tracking))}"]
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Give the mirror until ``tracking.timeout`` seconds from now to end, and leave no process behind.

        Call it once, after the state of the run is stored. However it ends, a second Ctrl-C included, the process
        and its children are gone afterwards; one line is reported where the mirror is not whole.
        """
        if self._process is None:
            return
        late = False
        try:
            self._process.wait(max(0.0, self._timeout - GRACE))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            self._end()
        problem = self._last_words()
        if late:
            problem = problem or f"no end within {self._timeout:g} s"
        elif self._process.returncode:
            problem = problem or f"its process ended with code {self._process.returncode}"
        if problem:
            self._report(f"W&B: not fully mirrored ({problem}); the run directory is complete")

    def _end(self) -> None:
        """End the process and its children (wandb-core is in a session of its own)."""
        assert self._process is not None
        try:
            mirror = psutil.Process(self._process.pid) if self._process.poll() is None else None
            family = [mirror, *mirror.children(recursive=True)] if mirror else []
        except psutil.NoSuchProcess:
            family = []
        try:
            _each(family, psutil.Process.terminate)
            psutil.wait_procs(family, timeout=GRACE)
        finally:
            _each(family, psutil.Process.kill)
            self._process.wait()

    def _last_words(self) -> str | None:
        """The last thing that the process said was wrong."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_start)
            for line in reversed(log.read().decode(errors="replace").splitlines()):
                if line.startswith("W&B: "):
                    return line.removeprefix("W&B: ")
        return None


def _each(processes: list[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(process)


def _environment() -> dict[str, str]:
    """This environment, with this package importable from anywhere, no W&B service to share, and no reports on use."""
    environment = {"WANDB_ERROR_REPORTING": "false", **os.environ}
    environment.pop("WANDB_SERVICE", None)
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return environment
