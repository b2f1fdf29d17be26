"""The mirror of a run in Weights & Biases, written by a process of its own (``mirror``) out of the run directory.

Training writes its run directory and nothing else; that process reads it. So nothing that W&B does, be it dead, slow
or absent, changes a run, ends it, or delays its end past ``tracking.timeout``. Imports neither torch nor wandb.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from mixersweep.config.schema import Tracking
from mixersweep.runs import RunDirectory

__all__ = ["Mirror", "start"]

GRACE = 1.0
"""Seconds from asking the processes of a mirror to end until they are killed; W&B needs them to close its file."""

REFUSED = "Fatal error while uploading data"
"""What the client prints, and tells in no other way, when the server refuses a run for good (deleted, read-only)."""


def start(directory: RunDirectory, report: Callable[[str], None]) -> Mirror:
    """Mirror the run that this process holds from now on; with ``tracking=none`` the mirror does nothing.

    Never raises for what the mirror cannot do: that is one line to ``report``.
    """
    tracking = directory.run.config.tracking
    mirror = Mirror(directory.path, tracking.timeout, report)
    if tracking.name == "wandb":
        try:
            mirror.spawn(tracking)
        except OSError as error:
            report(f"W&B: no mirror ({error}); the run directory is complete without it")
    return mirror


class Mirror:
    """The process that mirrors one run, as its training sees it."""

    def __init__(self, run_dir: Path, timeout: float, report: Callable[[str], None]) -> None:
        self._run_dir = run_dir
        self._timeout = timeout
        self._report = report
        self._log = run_dir / "wandb" / "mirror.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, tracking: Tracking) -> None:
        """Start the process, out of reach of the terminal's Ctrl-C; what it says goes to ``wandb/mirror.log``."""
        self._log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mixersweep.tracking", str(self._run_dir), f"--parent={os.getpid()}"]
        command += [f"--project={tracking.project}", f"--timeout={tracking.timeout}"]
        command += [f"--entity={tracking.entity}"] if tracking.entity else []
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
        """Give the mirror ``tracking.timeout`` seconds to end by itself, and leave no process behind.

        Call it once, after the state of the run is stored. However it ends, a second Ctrl-C included, the process
        and its children are gone afterwards; one line is reported where the mirror is not whole.
        """
        if self._process is None:
            return
        late = False
        try:
            self._process.wait(self._timeout)
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
        """The last thing that the process, or the client in it, said was wrong."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_start)
            for line in reversed(log.read().decode(errors="replace").splitlines()):
                if line.startswith("W&B: "):
                    return line.removeprefix("W&B: ")
                if REFUSED in line:
                    return REFUSED.lower()
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
