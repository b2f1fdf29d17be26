"""The program of a Slurm array job, which executes the runs that ``RECORD`` assigns to it (``python -m ... RECORD``).

On a signal from Slurm (TERM, USR1, USR2: preemption, or the time limit is near) the job stops its runs, waits until
they have saved their checkpoints, and requeues itself once; the requeued job continues the unfinished runs. It requeues
itself only while its Slurm state is RUNNING: a job that is being cancelled, or was requeued already, is left to Slurm.
"""

from __future__ import annotations

import dataclasses
import json
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
from mixersweep.runs.status import guard, this_host, watch
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import GIVEN_GPU, LOG, StopRequest, mps
from mixersweep.sweeps.launchers.local import visible_gpus
from mixersweep.sweeps.launchers.node import execute, is_to_go_on, slots
from mixersweep.sweeps.outcome import outcome
from mixersweep.sweeps.packs import packs

POLL = 1.0
"""Seconds between two checks of a run that an earlier execution of this job still holds."""


def execute_pack(record: str, index: int) -> None:
    """Execute the runs of job ``index`` of the array described in the file ``record``, and exit with the job's code."""
    from mixersweep.training.signals import StopSignals

    signals = StopSignals().install()
    described = json.loads(Path(record).read_text())
    run_dirs = [Path(run) for run in described["packs"][index]]
    names = [field.name for field in dataclasses.fields(_Asked)]
    asked = _Asked(**{name: described[name] for name in names if name in described})
    sys.exit(_Job(run_dirs, asked, index, signals, Path(record)).execute())


@dataclass(frozen=True)
class _Asked:
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

    def __init__(self, run_dirs: list[Path], asked: _Asked, index: int, signals: StopRequest, record: Path) -> None:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        self.id = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        self._run_dirs, self._asked, self._index, self._signals = run_dirs, asked, index, signals
        self._requeue = _Requeue(self.id, _Attempts(record.with_suffix(f".{index}.json"), run_dirs), asked.requeues)
        self._deadline: threading.Timer | None = None

    def execute(self) -> int:
        """Execute the unfinished runs, and return the exit code of the job."""
        node, restarts = os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_RESTART_COUNT", "0")
        _say(f"job {self.id} on node {node}: {len(self._run_dirs)} runs, requeued {restarts} times before")
        try:
            self._execute()
        except RunStopped:
            left = [run_dir for run_dir in self._run_dirs if read_status(run_dir).state.is_for_a_job]
            if left and self._requeue.once():
                for run_dir in left:
                    queue.pass_on(run_dir, self.id)
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            for run_dir in self._run_dirs:
                stopped = Status(State.PREEMPTED, job=self.id, error="stopped before it began")
                queue.take_back(run_dir, stopped)
                if self._requeue.refused is not None:
                    _say_why(run_dir, self._requeue.refused)
                _say(outcome(run_dir))
        if self._requeue.is_done:
            return PREEMPTED
        completed = all(read_status(run_dir).state is State.COMPLETED for run_dir in self._run_dirs)
        return DONE if completed else FAILED

    def check(self) -> None:
        """Raise ``RunStopped`` if a signal has arrived, and start a timer to requeue the job before Slurm kills it."""
        try:
            self._signals.check()
        except RunStopped as stopped:
            if self._deadline is None:  # Slurm kills the job after the grace period: requeue it before
                _say(f"{stopped}: the runs are told to stop")
                self._deadline = threading.Timer(max(self._asked.grace / 2, self._asked.grace - 20), self._requeue.once)
                self._deadline.daemon = True
                self._deadline.start()
            raise

    def _execute(self) -> None:
        left = list(self._run_dirs)
        while claimed := self._claimed(left):
            cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
            gpus = visible_gpus()
            at_once = self._asked.at_once or self._asked.runs_per_job
            sharing = math.ceil(at_once / max(1, len(gpus)))
            made = packs(claimed, self._asked.pack, on_gpu=bool(gpus), places=len(gpus), sharing=sharing)
            places = slots(
                min(len(made), self._asked.at_once or len(made)), int(cpus) if cpus else None, gpus, self._index
            )
            with mps.daemon([place.environment for place in places], _say, wanted=self._asked.mps) as shared:
                expected = {GIVEN_GPU: "asked"} if self._asked.gpus else {}
                codes = execute(made, [place.plus({**shared, **expected}) for place in places], self, _say)
            for run_dir, code in codes.items():
                if code and not is_to_go_on(code) and read_status(run_dir).state is State.QUEUED:
                    queue.fail(run_dir, f"its process ended with code {code} before it began; see {LOG}")
            left = [run_dir for run_dir, code in codes.items() if is_to_go_on(code)]

    def _claimed(self, run_dirs: Collection[Path]) -> list[Path]:
        """Claim and return the runs that this job may train now.

        Waits for runs that an earlier execution of this job still holds (on a node that Slurm has given up), but not
        for runs that another job or process holds.
        """
        claimed, held = [], list(run_dirs)
        watch(held, _say, self.check)
        while held:
            claims = {run_dir: self._claim(run_dir) for run_dir in held}
            claimed += [run_dir for run_dir, claim in claims.items() if claim]
            held = [run_dir for run_dir, claim in claims.items() if claim is None]
            if held:
                self.check()
                time.sleep(POLL)
        self.check()
        return claimed

    def _claim(self, run_dir: Path) -> bool | None:
        """Mark the run ``queued`` in this job; returns False if that is impossible, None if it may soon be possible."""
        with guard(run_dir):
            status = read_status(run_dir)
            if status.alive or status.stopping:
                return None if status.job == self.id and status.alive else False
            if not status.state.is_for_a_job:
                return False
            now, started = time.time(), psutil.Process().create_time()
            set_status(run_dir, Status(State.QUEUED, this_host(), os.getpid(), started, now, now, job=self.id))
            return True


class _Attempts:
    """Counts how many times in a row a job was stopped before any of its runs made progress."""

    def __init__(self, path: Path, run_dirs: Collection[Path]) -> None:
        self._path, self._run_dirs = path, run_dirs
        self._before = self._position()

    def in_vain(self) -> int:
        """Update and return the count, which is 0 if a run saved a checkpoint or ended since this job started."""
        kept = read_json(self._path) or {}
        count = 0 if self._position() != self._before else int(kept.get("in_vain", 0)) + 1
        write_json(self._path, {"in_vain": count})
        return count

    def _position(self) -> list[tuple[str, int]]:
        """Return values that change when a run saves a checkpoint or ends."""
        found = []
        for run_dir in self._run_dirs:
            checkpoint = run_dir / "checkpoint.pt"
            is_over = read_status(run_dir).state.has_ended
            found.append((str(is_over), checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0))
        return found


class _Requeue:
    """Requeues a job with ``scontrol requeue``, at most once."""

    def __init__(self, job: str, attempts: _Attempts, most: int) -> None:
        self._job, self._attempts, self._most = job, attempts, most
        self._lock = threading.Lock()
        self._is_enough = False
        self.is_done = False
        self.refused: str | None = None
        """The reason why the job was not requeued, None without one."""

    def once(self) -> bool:
        """Requeue the job if it is running and was not requeued before; returns whether it has been requeued."""
        with self._lock:
            if self.is_done or self._is_enough:
                return self.is_done
            if (state := job_state(self._job)) != "RUNNING":
                self.refused = f"Slurm calls job {self._job} {state}: not requeued"
            elif (in_vain := self._attempts.in_vain()) > self._most:
                self._is_enough = True
                self.refused = (
                    f"job {self._job} was stopped {in_vain} times without coming further: not requeued; raise "
                    "hydra.launcher.time, or have runs save more often (checkpoint.minutes)"
                )
            else:
                done = subprocess.run(["scontrol", "requeue", self._job], capture_output=True, text=True)
                self.is_done = done.returncode == 0
                self.refused = None if self.is_done else f"scontrol requeue: {done.stderr.strip()}"
            _say(self.refused or f"job {self._job} requeued")
            return self.is_done


def _say_why(run_dir: Path, reason: str) -> None:
    """Add to the status of a stopped run the reason why its job does not continue it."""
    with guard(run_dir):
        status = read_status(run_dir)
        if status.state is State.PREEMPTED and reason not in (status.error or ""):
            said = "; ".join(filter(None, [status.error, reason]))
            set_status(run_dir, dataclasses.replace(status, error=said))


def job_state(job: str) -> str | None:
    """Return the current Slurm state of a job, such as ``RUNNING``, or None if Slurm does not know the job."""
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True).stdout
    states = re.findall(r"\bJobState=(\w+)", shown)
    return states[0] if states else None


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} mixersweep: {text}", flush=True)


if __name__ == "__main__":
    execute_pack(sys.argv[1], int(os.environ["SLURM_ARRAY_TASK_ID"]))
