"""The mirror of a run in Weights & Biases, written by a process of its own (``mirror``) out of the run directory.

Training writes its run directory and nothing else; that process reads it. So nothing that W&B does, be it dead, slow
or absent, changes a run, ends it, or delays its end past ``tracking.timeout``. Imports neither torch nor wandb.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mixersweep.config.schema import Tracking
from mixersweep.errors import RunStopped
from mixersweep.runs import RunDirectory
from mixersweep.tracking import processes
from mixersweep.tracking.identity import LOG, of_agent, without_agent, write_identity

__all__ = ["Mirror", "leave_agent", "replay", "report_sweep", "start"]

REPORT_LOG = "report.log"
"""In ``RUNS_DIR/.sweeps/NAME/wandb/``: what the process said that sent the sweep's report."""

Report = Callable[[str], None]


def start(directory: RunDirectory, report: Report) -> Mirror:
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


def replay(directory: RunDirectory, report: Report) -> None:
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

    def __init__(self, run_dir: Path, timeout: float, report: Report) -> None:
        self._run_dir = run_dir
        self._timeout = timeout
        self._report = report
        self._log = run_dir / "wandb" / LOG
        self._begins = 0
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, tracking: Tracking) -> None:
        """Start the process; what it says goes to ``wandb/mirror.log``."""
        command = [sys.executable, "-m", "mixersweep.tracking", str(self._run_dir), f"--parent={os.getpid()}"]
        command += [f"--tracking={json.dumps(dataclasses.asdict(tracking))}"]
        self._process, self._begins = processes.start(command, self._log)

    def finish(self) -> None:
        """Give the mirror until ``tracking.timeout`` seconds from now to end, and leave no process behind.

        Call it once, after the state of the run is stored. However it ends, a second Ctrl-C included, the process
        and its children are gone afterwards; one line is reported where the mirror is not whole.
        """
        if self._process is None:
            return
        late = False
        try:
            self._process.wait(max(0.0, self._timeout - processes.GRACE))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            processes.end(self._process)
        problem = processes.last_words(self._log, self._begins, "W&B: ")
        if late:
            problem = problem or f"no end within {self._timeout:g} s; `mixersweep wandb sync` sends the rest"
        elif self._process.returncode:
            problem = problem or f"its process ended with code {self._process.returncode}"
        if problem:
            self._report(f"W&B: not fully mirrored ({problem}); the run directory is complete")


def report_sweep(name: str, runs_dir: Path, tracking: Tracking, check: Callable[[], None], report: Report) -> None:
    """Send the figures, tables and statistics of a sweep that has ended to W&B, where that is set and there is a key.

    Waits ``tracking.report_timeout`` seconds at most, and until ``check`` raises ``RunStopped``. Never raises for what
    cannot be done: that is one line to ``report``.
    """
    if tracking.name != "wandb" or not tracking.report:
        return
    again = f"`mixersweep wandb report {name}` sends it"
    command = [sys.executable, "-m", "mixersweep", "wandb", "report", name, f"--runs-dir={runs_dir}", "--where-online"]
    command += [f"--timeout={tracking.timeout}", f"--project={tracking.project}"]
    command += [f"--entity={tracking.entity}"] if tracking.entity else []
    log = runs_dir / ".sweeps" / name / "wandb" / REPORT_LOG
    try:
        process, begins = processes.start(command, log)
    except OSError as error:
        report(f"W&B: no report of the sweep ({error}); {again}")
        return
    deadline = time.monotonic() + max(0.0, tracking.report_timeout - processes.GRACE)
    problem = None
    try:
        while process.poll() is None:
            check()
            if time.monotonic() > deadline:
                problem = f"not done within {tracking.report_timeout:g} s"
                break
            time.sleep(0.1)
    except RunStopped as stopped:
        problem = str(stopped)
    finally:
        processes.end(process)
    if problem is None and process.returncode:
        problem = (
            processes.last_words(log, begins, "mixersweep: error: ")
            or f"its process ended with code {process.returncode}"
        )
    if problem:
        report(f"W&B: no report of the sweep ({problem}); {again}")
