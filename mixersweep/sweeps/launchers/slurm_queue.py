"""Query Slurm about jobs: ``squeue`` once for all runs together, then ``sacct`` once for jobs it no longer lists.

The runs of each job of an array are recorded in ``SWEEP/slurm/TOKEN.json``, and the array's name contains the token.
So a later process can find out which runs are still in the queue, even if the process that submitted them died.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixersweep.errors import UserError
from mixersweep.paths import sweeps_dir
from mixersweep.runs import Status, read_status, set_status
from mixersweep.runs.files import read_json
from mixersweep.runs.listing import Listed
from mixersweep.runs.state import State
from mixersweep.runs.status import status_lock
from mixersweep.sweeps import queue

RECORDS_FOLDER = "slurm"
"""The directory, in the folder of a sweep, with a record and the script of each array, and the jobs' logs."""

FINAL_STATES = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT"),
    )
)
"""The states of jobs that have ended for good; a job that Slurm requeues is PENDING instead."""

STUCK_REASONS = {
    "JobHeldAdmin": "held by the cluster's people",
    "DependencyNeverSatisfied": "never begins, what it depends on has failed: cancel it",
    "BadConstraints": "never begins, no node has what it asks for: cancel it",
    "PartitionTimeLimit": "never begins, it asks for more time than its partition gives: cancel it",
}
"""Slurm's reasons for a pending job that will not start without help; ``Job.required_action`` adds held jobs."""

CLOCK_SKEW = 1.0
"""Seconds by which hosts' clocks may differ, when judging whether a job was submitted after Slurm was asked."""

SAME_COMMAND = "the same command takes it up"


@dataclass(frozen=True)
class Job:
    """One job, or one task of a job array, as Slurm lists it; ``state`` and ``reason`` are Slurm's own terms."""

    id: str
    index: int
    state: str
    reason: str = ""
    name: str = ""

    @property
    def required_action(self) -> str | None:
        """What a person has to do before the job can start; None if it starts without help."""
        if self.state != "PENDING":
            return None
        held = f"held: scontrol release {self.id} lets it go on" if "held" in self.reason.lower() else None
        return STUCK_REASONS.get(self.reason, held)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and Slurm will not start it again."""
        return self.state in FINAL_STATES

    def __str__(self) -> str:
        """Return the state, followed by the reason if there is one."""
        reason = "" if self.reason in ("", "None") else f" ({self.reason})"
        return f"{self.state}{reason}"


def squeue(*, ended: bool = False) -> list[Job]:
    """List this user's jobs that have not ended; with ``ended``, also those that ended a short time ago.

    Raises ``UserError`` if Slurm does not answer.
    """
    states = ["--states=all"] if ended else []
    command = ["squeue", "--me", "--noheader", "--array", *states, "--format=%F|%K|%T|%r|%j"]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        raise UserError(f"hydra/launcher=slurm: {error_message(completed.stderr)}")
    jobs = []
    for line in filter(str.strip, completed.stdout.splitlines()):
        array, indices, state, reason, name = line.strip().split("|", 4)
        numbers: list[int | None] = [*_indices(indices)]
        for index in numbers or [None]:  # none listed: an array that was cancelled before it began
            job = Job(array if index is None else f"{array}_{index}", index or 0, state, reason, name)
            if ended or not job.is_over:
                jobs.append(job)
    return jobs


def sacct(jobs: Collection[str]) -> dict[str, Job]:
    """Look jobs up in Slurm's accounting; returns those it knows, by id (none if the cluster has no accounting)."""
    if shutil.which("sacct") is None or not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={arrays}", "--format=JobID,State"]
    completed = subprocess.run(command, capture_output=True, text=True)
    jobs_by_id = {}
    for line in completed.stdout.splitlines() if completed.returncode == 0 else ():
        name, _, state = line.strip().partition("|")
        for job in _expand_ids(name):
            jobs_by_id[job] = Job(job, 0, state.split()[0] if state.split() else "")
    return jobs_by_id


def _expand_ids(name: str) -> Iterator[str]:
    """Yield the ids of the jobs in accounting's notation: ``12_[0-3,7%2]`` for several, or a single id."""
    array, _, listed = name.partition("_[")
    yield from (f"{array}_{index}" for index in _indices(listed.rstrip("]"))) if listed else [name]


def _indices(text: str) -> list[int]:
    """Parse array indices in Slurm's notation, such as ``0-3,7%2``; ``N/A`` has none."""
    indices: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            indices += range(int(first), int(last or first) + 1)
    return indices


def error_message(output: str) -> str:
    """Extract the error from the output of a Slurm command, as one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    errors_or_rest = errors or [line for line in lines if not line.startswith(("Try ", "Usage:"))]
    return "; ".join(dict.fromkeys(errors_or_rest)) or "Slurm does not answer"


def read_records(folder: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the stored records of the arrays with these names that were submitted from a folder of sweeps."""
    for name in names:
        for path in folder.glob(f"*/{RECORDS_FOLDER}/{name.rpartition('-')[2]}.json"):
            record = read_json(path)
            if record is not None and record["name"] == name:
                yield record


def runs_in_queue(folder: Path, listed: Iterable[Job]) -> dict[Path, Job]:
    """Return the runs of all unfinished jobs that were submitted from this folder of sweeps, each with its job."""
    jobs = [job for job in listed if not job.is_over]
    runs_of_arrays = {record["name"]: record["packs"] for record in read_records(folder, {job.name for job in jobs})}
    return {Path(run): job for job in jobs if job.name in runs_of_arrays for run in runs_of_arrays[job.name][job.index]}


def find_job(jobs: Mapping[str, Job], name: str) -> Job | None:
    """Find a job by id; Slurm lists an array that was cancelled before it began as one job, with the array's id."""
    array = jobs.get(name.partition("_")[0])
    return jobs.get(name) or (array if array is not None and array.is_over else None)


def describe_end(job: Job | None, name: str, log: Path | None = None) -> str:
    """Describe in words how a job ended."""
    if job is None:
        return f"Slurm knows no job {name} any more"
    if job.state == "CANCELLED":
        return f"its Slurm job {name} was cancelled"
    return f"its Slurm job {name} ended ({job.state})" + (f"; see {log}" if log is not None else "")


def status_of_unstarted(job: Job | None, name: str) -> Status:
    """Return the status for a run that was still queued when its job ended."""
    text = f"{describe_end(job, name)}" + (" before the run began" if job is not None else ", and the run never began")
    is_cancelled = job is not None and job.state == "CANCELLED"
    return Status(State.PLANNED if is_cancelled else State.FAILED, error=text)


def correct_status(run_dir: Path, name: str, job: Job | None, log: Path | None = None) -> bool:
    """Correct the status of a run that is still queued although its job has ended; returns whether it was changed."""
    with status_lock(run_dir):
        status = read_status(run_dir)
        if status.state is not State.QUEUED or status.job not in (name, None) or queue.is_held_elsewhere(status):
            return False
        new_status = status_of_unstarted(job, name)
        log_text = f"; see {log}" if log is not None and log.exists() else ""
        set_status(run_dir, dataclasses.replace(new_status, error=f"{new_status.error}{log_text}"))
        return True


class SlurmQuery:
    """Slurm's knowledge of this user's jobs, queried when the first run needs it."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """The reason why Slurm could not be queried, None otherwise."""
        self._query_time = 0.0
        self._in_queue: dict[Path, dict[Path, Job]] = {}

    @cached_property
    def jobs(self) -> dict[str, Job] | None:
        """This user's jobs by id; None if Slurm cannot be queried."""
        if shutil.which("squeue") is None:
            self.problem = "there is no Slurm here to ask (squeue is not on the PATH)"
            return None
        self._query_time = time.time()
        try:
            return {job.id: job for job in squeue(ended=True)}
        except UserError as error:
            self.problem = str(error)
            return None

    def with_jobs(self, runs: Iterable[Listed]) -> Iterator[Listed]:
        """Yield the runs with the state of their Slurm jobs; those whose jobs only ``sacct`` may know come last."""
        unlisted = []
        for run in runs:
            name = self._job_of(run)
            if name is None:
                yield _without_job(run)
            elif self.jobs is None:
                yield dataclasses.replace(run, job=name, next="Slurm cannot be asked here")
            elif (job := find_job(self.jobs, name)) is not None:
                yield _with_job(run, name, job)
            elif (run.status.since or 0.0) > self._query_time - CLOCK_SKEW:
                yield dataclasses.replace(run, job=name)
            elif run.path.stat().st_uid != os.getuid():
                yield dataclasses.replace(run, job=name, next="another's job, which Slurm does not show")
            else:
                unlisted.append((run, name))
        from_accounting = sacct([name for _, name in unlisted])
        for run, name in unlisted:
            job = find_job(from_accounting, name)
            yield _with_job(run, name, job if job is not None and job.is_over else None)

    def _job_of(self, run: Listed) -> str | None:
        """Return the id of the job that has to train an unfinished run; None if it has none or needs none."""
        status = run.status
        if run.state is State.BROKEN or status.state.has_ended:
            return None
        if status.job is not None or status.state is not State.QUEUED or queue.is_held_elsewhere(status):
            return status.job
        folder = sweeps_dir(run.path.parent)  # the submitting process may have died before it recorded the job
        if folder not in self._in_queue:
            is_ours = any(folder.glob(f"*/{RECORDS_FOLDER}/*.json"))
            listed = list((self.jobs or {}).values()) if is_ours else []
            self._in_queue[folder] = runs_in_queue(folder, listed)
        job = self._in_queue[folder].get(run.path)
        return None if job is None else job.id


def _without_job(run: Listed) -> Listed:
    """Return a run without a scheduler's job, with ``next`` set to what a person has to do for it to continue."""
    status = run.status
    if run.state in (State.INTERRUPTED, State.PREEMPTED):
        return dataclasses.replace(run, next="the same command goes on")
    if run.state is State.LOST:
        return dataclasses.replace(run, next=SAME_COMMAND)
    if run.state is State.QUEUED and status.is_on_this_host and not queue.is_held_elsewhere(status):
        text = f"the process that had queued it is gone; {SAME_COMMAND}"
        return dataclasses.replace(run, state=State.PLANNED, next=text)
    return run


def _with_job(run: Listed, name: str, job: Job | None) -> Listed:
    if job is not None and not job.is_over:
        next_step = job.required_action
        if run.state is State.LOST and job.state != "PENDING":  # a job begins no run again by itself
            next_step = "the same command goes on when its job has ended, unless Slurm requeues the job"
        elif run.state in (State.PREEMPTED, State.INTERRUPTED, State.LOST):
            next_step = next_step or "goes on by itself"
        return dataclasses.replace(run, job=name, job_state=str(job), next=next_step)
    job_state = "gone" if job is None else str(job)
    if run.state is State.RUNNING:
        return dataclasses.replace(run, job=name, job_state=job_state)
    current = read_status(run.path)
    if current != run.status:  # it went on, or ended, while Slurm was asked
        return dataclasses.replace(run, status=current, state=current.shown, job=name, job_state=job_state)
    if run.state is State.QUEUED:
        unstarted = status_of_unstarted(job, name)
        return dataclasses.replace(
            run, state=unstarted.state, job=name, job_state=job_state, next=f"{unstarted.error}; {SAME_COMMAND}"
        )
    return dataclasses.replace(
        run, job=name, job_state=job_state, next=f"{describe_end(job, name)}; the same command goes on"
    )


def with_slurm_jobs(runs: Iterable[Listed], problems: list[str] | None = None) -> Iterator[Listed]:
    """Yield the runs with the state of their Slurm jobs; if Slurm cannot be queried, ``problems`` gets the reason."""
    query = SlurmQuery()
    yield from query.with_jobs(runs)
    if query.problem is not None and problems is not None:
        problems.append(query.problem)


def cancel_jobs(run_dirs: Sequence[Path], jobs: Sequence[Job]) -> set[str]:
    """Cancel (``scancel``) the jobs of these cancelled runs that have no other unfinished run; returns their ids."""
    cancelled = {str(run_dir) for run_dir in run_dirs}
    folders = {sweeps_dir(run_dir.parent) for run_dir in run_dirs}
    live = [job for job in jobs if not job.is_over]
    runs_of_arrays = {
        record["name"]: record["packs"]
        for folder in folders
        for record in read_records(folder, {job.name for job in live})
    }
    cancellable = []
    for job in live:
        job_runs = runs_of_arrays[job.name][job.index] if job.name in runs_of_arrays else []
        if cancelled.intersection(job_runs) and all(run in cancelled or _has_ended(Path(run)) for run in job_runs):
            cancellable.append(job.id)
    for first in range(0, len(cancellable), 1000):
        subprocess.run(["scancel", *cancellable[first : first + 1000]], capture_output=True)
    return set(cancellable)


def _has_ended(run_dir: Path) -> bool:
    return read_status(run_dir).state.has_ended
