"""Mirror runs in Weights & Biases from a separate process (``mirror``) that reads their run directories.

The runs of a job share one such process (``job``); a training outside a job starts its own. Training only writes its
run directories. So W&B, whether dead, slow or absent, never changes a run, ends it, or delays its end past
``tracking.timeout``. This module imports neither torch nor wandb.
"""

from __future__ import annotations

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
from mixersweep.tracking import job, processes
from mixersweep.tracking.identity import (
    LOG,
    MIRRORED,
    OFFLINE,
    RESULT_PREFIX,
    agent_identity,
    remove_agent,
    write_identity,
)

__all__ = ["Mirror", "leave_agent", "replay", "report_sweep", "start"]

REPORT_LOG = "report.log"
"""The log, in ``RUNS_DIR/.sweeps/NAME/wandb/``, of the process that sends the sweep's report."""

Report = Callable[[str], None]


def start(directories: Sequence[RunDirectory], report: Report) -> Mirror:
    """Start to mirror the runs that this process trains, except those with ``tracking=none``, from one other process.

    That is the mirror of the job where there is one, and nothing waits for it here. Each ends at W&B when its stored
    state says that it has ended, and a process of its own when all have. Under ``wandb agent`` a single run takes the
    agent's id; of several, none does. Where the mirror cannot be started, one line is passed to ``report`` and nothing
    is raised.
    """
    runs = {each.path: each.run.config.tracking for each in directories if each.run.config.tracking.name == "wandb"}
    mirror = Mirror(runs, report)
    try:
        if len(runs) > 1:
            leave_agent()
        identity = agent_identity()
        if identity is not None:
            for run_dir in runs:
                write_identity(run_dir, identity)
        if runs and not job.hand_over(runs):
            mirror.spawn()
    except OSError as error:
        them = "the run directory is" if len(runs) == 1 else "the run directories are"
        report(f"W&B: no mirror ({error}); {them} complete without it")
    return mirror


def replay(directory: RunDirectory, report: Report) -> None:
    """Under ``wandb agent``, send the metrics of a run that has already ended, since the agent expects them."""
    if agent_identity() is not None:
        start([directory], report).finish()


def leave_agent() -> None:
    """Detach this process from ``wandb agent``, so that each of the many runs it trains has a W&B run of its own."""
    kept = remove_agent(os.environ.items())
    for name in set(os.environ) - set(kept):
        del os.environ[name]


class Mirror:
    """The handle of a training on the process that mirrors its runs; ``runs`` are their settings by directory."""

    def __init__(self, runs: Mapping[Path, Tracking], report: Report) -> None:
        self._runs = runs
        self._report = report
        self._log_starts: dict[Path, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start the process; its output goes to the ``wandb/mirror.log`` of the first run."""
        first = next(iter(self._runs))
        for run_dir in self._runs:
            log = run_dir / "wandb" / LOG
            self._log_starts[run_dir] = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-m", "mixersweep.tracking", str(first)]
        self._process, _ = processes.start(command, first / "wandb" / LOG, job.announcement(self._runs))

    def finish(self) -> None:
        """Wait at most ``tracking.timeout`` seconds for the mirror to end, and leave no process behind.

        Of several runs with different timeouts the longest counts. Call it once, after the states of the runs are
        stored. However it ends, a second Ctrl-C included, the process and its children are gone afterwards. One line is
        reported where a run is not fully mirrored.
        """
        if self._process is None:
            return
        timeout = max(tracking.timeout for tracking in self._runs.values())
        is_late = False
        try:
            self._process.wait(max(0.0, timeout - processes.GRACE))
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            processes.end(self._process)
        without_result = f"its process ended with code {self._process.returncode}"
        if is_late:
            without_result = f"not done within {timeout:g} s; `mixersweep wandb sync` sends the rest"
        results = {
            run_dir: processes.last_line(run_dir / "wandb" / LOG, begins, RESULT_PREFIX) or without_result
            for run_dir, begins in self._log_starts.items()
        }
        fine = (MIRRORED, OFFLINE)
        self._report_problems({run_dir: result for run_dir, result in results.items() if result not in fine})

    def _report_problems(self, problems: Mapping[Path, str]) -> None:
        """Report in one line how many runs are not fully mirrored, with the reason for the first."""
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
    """Send figures, tables and statistics of a finished sweep to W&B, if ``tracking.report`` is set and there is a key.

    Waits at most ``tracking.report_timeout`` seconds, or until ``check`` raises ``RunStopped``. Where it fails, one
    line is passed to ``report`` and nothing is raised.
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
            processes.last_line(log, begins, "mixersweep: error: ")
            or f"its process ended with code {process.returncode}"
        )
    if problem:
        report(f"W&B: no report of the sweep ({problem.removeprefix('W&B: ')}); {again}")
