"""The program of a Slurm array job, which executes the runs that ``RECORD`` assigns to it (``python -m ... RECORD``).

On a signal from Slurm (TERM, USR1, USR2: preemption, or the time limit is near) the job stops its runs, waits until
they have saved their checkpoints, and requeues itself once; the requeued job continues the unfinished runs. It requeues
itself only while its Slurm state is RUNNING: a job that is being cancelled, or was requeued already, is left to Slurm.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from mixersweep.errors import DONE, FAILED, PREEMPTED, RunStopped
from mixersweep.kinds import Auto
from mixersweep.runs import Status, read_status, set_status
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State
from mixersweep.runs.status import observe_heartbeats, status_lock, this_host
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import GPU_REQUESTED, StopRequest, mps
from mixersweep.sweeps.launchers.local import visible_gpus
from mixersweep.sweeps.launchers.node import execute, is_to_continue, slots
from mixersweep.sweeps.outcome import outcome_line
from mixersweep.sweeps.packs import pack_jobs

POLL_SECONDS = 1.0
"""Seconds between two checks of a run that an earlier execution of this job still holds."""


def execute_pack(record: str, index: int) -> None:
    """Execute the runs of job ``index`` of the array described in the file ``record``, and exit with the job's code."""
    from mixersweep.training.signals import StopSignals

    signals = StopSignals().install()
    stored = read_json(Path(record))
    run_dirs = [Path(run) for run in stored["packs"][index]]
    names = [field.name for field in dataclasses.fields(_JobSettings)]
    settings = _JobSettings(**{name: stored[name] for name in names if name in stored})
    sys.exit(_Job(run_dirs, settings, index, signals, Path(record)).execute())


@dataclass(frozen=True)
class _JobSettings:
    """The launcher's settings that a job needs; the defaults are for records of older versions, which lack some."""

    grace: float
    pack: int | Auto = 1
    mps: bool = True
    runs_per_job: int = 1
    at_once: int | None = None
    requeues: int = 5
    gpus: int = 0


class _Job:
    """A Slurm job and its runs; ``id`` is the job's id in Slurm's commands."""

    def __init__(
        self, run_dirs: list[Path], settings: _JobSettings, index: int, signals: StopRequest, record: Path
    ) -> None:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        self.id = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        self._run_dirs, self._settings, self._index, self._signals = run_dirs, settings, index, signals
        self._folder = record.parents[1]
        futile_stops = _FutileStops(record.with_suffix(f".{index}.json"), run_dirs)
        self._requeuer = _Requeuer(self.id, futile_stops, settings.requeues)
        self._deadline: threading.Timer | None = None

    def execute(self) -> int:
        """Execute the unfinished runs, and return the exit code of the job."""
        node, restarts = os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_RESTART_COUNT", "0")
        _log(f"job {self.id} on node {node}: {len(self._run_dirs)} runs, requeued {restarts} times before")
        try:
            self._execute()
        except RunStopped:
            left = [run_dir for run_dir in self._run_dirs if read_status(run_dir).state.is_for_a_job]
            if left and self._requeuer.requeue():
                for run_dir in left:
                    queue.assign_to_job(run_dir, self.id)
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            for run_dir in self._run_dirs:
                stopped = Status(State.PREEMPTED, job=self.id, error="stopped before it began")
                queue.restore(run_dir, stopped)
                if self._requeuer.refusal is not None:
                    _record_reason(run_dir, self._requeuer.refusal)
                _log(outcome_line(run_dir))
        if self._requeuer.is_done:
            return PREEMPTED
        completed = all(read_status(run_dir).state is State.COMPLETED for run_dir in self._run_dirs)
        return DONE if completed else FAILED

    def check(self) -> None:
        """Raise ``RunStopped`` if a signal has arrived, and start a timer to requeue the job before Slurm kills it."""
        try:
            self._signals.check()
        except RunStopped as stopped:
            if self._deadline is None:  # Slurm kills the job after the grace period: requeue it before
                _log(f"{stopped}: the runs are told to stop")
                grace = self._settings.grace
                self._deadline = threading.Timer(max(grace / 2, grace - 20), self._requeuer.requeue)
                self._deadline.daemon = True
                self._deadline.start()
            raise

    def _execute(self) -> None:
        left = list(self._run_dirs)
        while claimed := self._claim_runs(left):
            cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
            gpus = visible_gpus()
            settings, on_gpu = self._settings, bool(gpus)
            sharing = math.ceil((settings.at_once or settings.runs_per_job) / max(1, len(gpus)))
            packs = pack_jobs(claimed, settings.pack, on_gpu=on_gpu, at_once=len(gpus), packs_per_gpu=sharing)
            count = min(len(packs), settings.at_once or len(packs))
            job_slots = slots(count, int(cpus) if cpus else None, gpus, self._index)
            with mps.daemon([slot.environment for slot in job_slots], _log, is_wanted=settings.mps) as shared:
                marker = {GPU_REQUESTED: "asked"} if settings.gpus else {}
                job_slots = [slot.with_environment({**shared, **marker}) for slot in job_slots]
                codes = execute(self._folder, packs, job_slots, self, _log)
            for run_dir, code in codes.items():
                if not is_to_continue(code):
                    queue.fail_unstarted(run_dir, code)
            left = [run_dir for run_dir, code in codes.items() if is_to_continue(code)]

    def _claim_runs(self, run_dirs: Collection[Path]) -> list[Path]:
        """Claim and return the runs that this job may train now.

        Waits for runs that an earlier execution of this job still holds (on a node that Slurm has given up), but not
        for runs that another job or process holds.
        """
        claimed, held = [], list(run_dirs)
        observe_heartbeats(held, _log, self.check)
        while held:
            claims = {run_dir: self._claim(run_dir) for run_dir in held}
            claimed += [run_dir for run_dir, claim in claims.items() if claim]
            held = [run_dir for run_dir, claim in claims.items() if claim is None]
            if held:
                self.check()
                time.sleep(POLL_SECONDS)
        self.check()
        return claimed

    def _claim(self, run_dir: Path) -> bool | None:
        """Mark the run ``queued`` in this job; returns False if that is impossible, None if it may soon be possible."""
        with status_lock(run_dir):
            status = read_status(run_dir)
            if status.is_alive or status.is_stopping:
                return None if status.job == self.id and status.is_alive else False
            if not status.state.is_for_a_job:
                return False
            now, started = time.time(), psutil.Process().create_time()
            set_status(run_dir, Status(State.QUEUED, this_host(), os.getpid(), started, now, now, job=self.id))
            return True


class _FutileStops:
    """Counts how many times in a row a job was stopped before any of its runs made progress."""

    def __init__(self, path: Path, run_dirs: Collection[Path]) -> None:
        self._path, self._run_dirs = path, run_dirs
        self._earlier = self._progress()

    def update(self) -> int:
        """Update and return the count, which is 0 if a run saved a checkpoint or ended since this job started."""
        stored = read_json(self._path) or {}
        count = 0 if self._progress() != self._earlier else int(stored.get("in_vain", 0)) + 1
        write_json(self._path, {"in_vain": count})
        return count

    def _progress(self) -> list[tuple[str, int]]:
        """Return values that change when a run saves a checkpoint or ends."""
        progress = []
        for run_dir in self._run_dirs:
            checkpoint = run_dir / "checkpoint.pt"
            is_over = read_status(run_dir).state.has_ended
            progress.append((str(is_over), checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0))
        return progress


class _Requeuer:
    """Requeues a job with ``scontrol requeue``, at most once."""

    def __init__(self, job: str, futile_stops: _FutileStops, limit: int) -> None:
        self._job, self._futile_stops, self._limit = job, futile_stops, limit
        self._lock = threading.Lock()
        self._has_given_up = False
        self.is_done = False
        self.refusal: str | None = None
        """The reason why the job was not requeued, None without one."""

    def requeue(self) -> bool:
        """Requeue the job if it is running and was not requeued before; returns whether it has been requeued."""
        with self._lock:
            if self.is_done or self._has_given_up:
                return self.is_done
            if (state := job_state(self._job)) != "RUNNING":
                self.refusal = f"Slurm calls job {self._job} {state}: not requeued"
            elif (count := self._futile_stops.update()) > self._limit:
                self._has_given_up = True
                self.refusal = (
                    f"job {self._job} was stopped {count} times without coming further: not requeued; raise "
                    "hydra.launcher.time, or have runs save more often (checkpoint.minutes)"
                )
            else:
                done = subprocess.run(["scontrol", "requeue", self._job], capture_output=True, text=True)
                self.is_done = done.returncode == 0
                self.refusal = None if self.is_done else f"scontrol requeue: {done.stderr.strip()}"
            _log(self.refusal or f"job {self._job} requeued")
            return self.is_done


def _record_reason(run_dir: Path, reason: str) -> None:
    """Add to the status of a stopped run the reason why its job does not continue it."""
    with status_lock(run_dir):
        status = read_status(run_dir)
        if status.state is State.PREEMPTED and reason not in (status.error or ""):
            error = "; ".join(filter(None, [status.error, reason]))
            set_status(run_dir, dataclasses.replace(status, error=error))


def job_state(job: str) -> str | None:
    """Return the current Slurm state of a job, such as ``RUNNING``, or None if Slurm does not know the job."""
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True).stdout
    states = re.findall(r"\bJobState=(\w+)", shown)
    return states[0] if states else None


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} mixersweep: {text}", flush=True)


if __name__ == "__main__":
    execute_pack(sys.argv[1], int(os.environ["SLURM_ARRAY_TASK_ID"]))
