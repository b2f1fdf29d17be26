"""The mirror of runs in Weights & Biases, written by a process of its own (``mirror``) out of the run directories.

Training writes its run directories and nothing else; that process reads them. So nothing that W&B does, be it dead,
slow or absent, changes a run, ends it, or delays its end past ``tracking.timeout``. Imports neither torch nor wandb.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mixersweep.config.schema import Tracking
from mixersweep.errors import RunStopped
from mixersweep.paths import sweeps_dir
from mixersweep.runs import RunDirectory
from mixersweep.tracking import processes
from mixersweep.tracking.identity import LOG, SAYS, WHOLE, of_agent, without_agent, write_identity

__all__ = ["Mirror", "leave_agent", "replay", "report_sweep", "start"]

REPORT_LOG = "report.log"
"""In ``RUNS_DIR/.sweeps/NAME/wandb/``: what the process said that sent the sweep's report."""

Report = Callable[[str], None]


def start(directories: Sequence[RunDirectory], report: Report) -> Mirror:
    """Mirror the runs that this process holds from now on, all in one process; those with ``tracking=none`` are not.

    Each ends at W&B when its state says that it has ended, and the process when all have. Under ``wandb agent`` a run
    takes the agent's id; of several, none is the agent's. Never raises for what the mirror cannot do: that is one line
    to ``report``.
    """
    runs = {each.path: each.run.config.tracking for each in directories if each.run.config.tracking.name == "wandb"}
    mirror = Mirror(runs, report)
    try:
        if len(runs) > 1:
            leave_agent()
        identity = of_agent()
        if identity is not None:
            for run_dir in runs:
                write_identity(run_dir, identity)
        if runs:
            mirror.spawn()
    except OSError as error:
        them = "the run directory is" if len(runs) == 1 else "the run directories are"
        report(f"W&B: no mirror ({error}); {them} complete without it")
    return mirror


def replay(directory: RunDirectory, report: Report) -> None:
    """Under ``wandb agent``, which wants the metrics of each run that it starts, send those of one that has ended."""
    if of_agent() is not None:
        start([directory], report).finish()


def leave_agent() -> None:
    """For a command that trains many runs: they are none of the agent's, each has a W&B run of its own."""
    kept = without_agent(os.environ.items())
    for name in set(os.environ) - set(kept):
        del os.environ[name]


class Mirror:
    """The process that mirrors runs, given with their settings by directory, as their training sees it."""

    def __init__(self, runs: Mapping[Path, Tracking], report: Report) -> None:
        self._runs = runs
        self._report = report
        self._begins: dict[Path, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start the process; what it says goes to the ``wandb/mirror.log`` of the first run."""
        first = next(iter(self._runs))
        for run_dir in self._runs:
            log = run_dir / "wandb" / LOG
            self._begins[run_dir] = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-m", "mixersweep.tracking", str(first), f"--parent={os.getpid()}"]
        asked = {str(run_dir): dataclasses.asdict(tracking) for run_dir, tracking in self._runs.items()}
        self._process, _ = processes.start(command, first / "wandb" / LOG, json.dumps(asked))

    def finish(self) -> None:
        """Give the mirror until ``tracking.timeout`` seconds from now to end, and leave no process behind.

        Of several runs with different timeouts the longest counts. Call it once, after the states of the runs are
        stored. However it ends, a second Ctrl-C included, the process and its children are gone afterwards; one line is
        reported where the mirror is not whole.
        """
        if self._process is None:
            return
        timeout = max(tracking.timeout for tracking in self._runs.values())
        late = False
        try:
            self._process.wait(max(0.0, timeout - processes.GRACE))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            processes.end(self._process)
        silence = f"its process ended with code {self._process.returncode}"
        if late:
            silence = f"no end within {timeout:g} s; `mixersweep wandb sync` sends the rest"
        said = {
            run_dir: processes.last_words(run_dir / "wandb" / LOG, begins, SAYS) or silence
            for run_dir, begins in self._begins.items()
        }
        self._tell({run_dir: problem for run_dir, problem in said.items() if problem != WHOLE})

    def _tell(self, problems: Mapping[Path, str]) -> None:
        """Report in one line which runs are not mirrored whole, and of the first why."""
        if not problems:
            return
        run_dir, problem = next(iter(problems.items()))
        if len(self._runs) == 1:
            self._report(f"W&B: not fully mirrored ({problem}); the run directory is complete")
        else:
            some = f"{len(problems)} of {len(self._runs)} runs"
            self._report(
                f"W&B: {some} not fully mirrored ({run_dir.name}: {problem}); the run directories are complete"
            )


def report_sweep(name: str, runs_dir: Path, tracking: Tracking, check: Callable[[], None], report: Report) -> None:
    """Send the figures, tables and statistics of a sweep that has ended to W&B, where that is set and there is a key.

    Waits ``tracking.report_timeout`` seconds at most, and until ``check`` raises ``RunStopped``. Never raises for what
    cannot be done: that is one line to ``report``.
    """
    if tracking.name != "wandb" or not tracking.report:
        return
    again = f"`mixersweep wandb report {shlex.quote(name)}` sends it"
    command = [sys.executable, "-m", "mixersweep", "wandb", "report", name, f"--runs-dir={runs_dir}", "--where-online"]
    command += [f"--timeout={tracking.timeout}", f"--project={tracking.project}"]
    command += [f"--entity={tracking.entity}"] if tracking.entity else []
    log = sweeps_dir(runs_dir) / name / "wandb" / REPORT_LOG
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
