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

FOLDER = "slurm"
"""The directory, in the folder of a sweep, with a record and the script of each array, and the jobs' logs."""

OVER = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT"),
    )
)
"""The states of jobs that have ended for good; a job that Slurm requeues is PENDING instead."""

FOR_A_PERSON = {
    "JobHeldAdmin": "held by the cluster's people",
    "DependencyNeverSatisfied": "never begins, what it depends on has failed: cancel it",
    "BadConstraints": "never begins, no node has what it asks for: cancel it",
    "PartitionTimeLimit": "never begins, it asks for more time than its partition gives: cancel it",
}
"""Slurm's reasons for a pending job that will not start without help; ``Job.wants`` also handles held jobs."""

SKEW = 1.0
"""Seconds by which hosts' clocks may differ, when judging whether a job was submitted after Slurm was asked."""

TAKE_UP = "the same command takes it up"


@dataclass(frozen=True)
class Job:
    """One job, or one task of a job array, as Slurm lists it; ``state`` and ``reason`` are Slurm's own terms."""

    id: str
    index: int
    state: str
    reason: str = ""
    name: str = ""

    @property
    def wants(self) -> str | None:
        """What a person has to do before the job can start; None if it starts without help."""
        if self.state != "PENDING":
            return None
        held = f"held: scontrol release {self.id} lets it go on" if "held" in self.reason.lower() else None
        return FOR_A_PERSON.get(self.reason, held)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and Slurm will not start it again."""
        return self.state in OVER

    def __str__(self) -> str:
        """Return the state, followed by the reason if there is one."""
        told = "" if self.reason in ("", "None") else f" ({self.reason})"
        return f"{self.state}{told}"


def squeue(*, ended: bool = False) -> list[Job]:
    """List this user's jobs that have not ended; with ``ended``, also those that ended a short time ago.

    Raises ``UserError`` if Slurm does not answer.
    """
    states = ["--states=all"] if ended else []
    command = ["squeue", "--me", "--noheader", "--array", *states, "--format=%F|%K|%T|%r|%j"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"hydra/launcher=slurm: {refusal(done.stderr)}")
    found = []
    for line in filter(str.strip, done.stdout.splitlines()):
        array, indices, state, reason, name = line.strip().split("|", 4)
        numbers: list[int | None] = [*_indices(indices)]
        for index in numbers or [None]:  # none listed: an array that was cancelled before it began
            job = Job(array if index is None else f"{array}_{index}", index or 0, state, reason, name)
            if ended or not job.is_over:
                found.append(job)
    return found


def sacct(jobs: Collection[str]) -> dict[str, Job]:
    """Look jobs up in Slurm's accounting; returns those it knows, by id (none if the cluster has no accounting)."""
    if shutil.which("sacct") is None or not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={arrays}", "--format=JobID,State"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, state = line.strip().partition("|")
        for job in _each(name):
            found[job] = Job(job, 0, state.split()[0] if state.split() else "")
    return found


def _each(name: str) -> Iterator[str]:
    """Yield the ids of the jobs in accounting's notation: ``12_[0-3,7%2]`` for several, or a single id."""
    array, _, listed = name.partition("_[")
    yield from (f"{array}_{index}" for index in _indices(listed.rstrip("]"))) if listed else [name]


def _indices(text: str) -> list[int]:
    """Parse array indices in Slurm's notation, such as ``0-3,7%2``; ``N/A`` has none."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def refusal(said: str) -> str:
    """Extract the error from the output of a Slurm command, as one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    shown = errors or [line for line in lines if not line.startswith(("Try ", "Usage:"))]
    return "; ".join(dict.fromkeys(shown)) or "Slurm does not answer"


def records(folder: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the stored records of the arrays with these names that were submitted from a folder of sweeps."""
    for name in names:
        for path in folder.glob(f"*/{FOLDER}/{name.rpartition('-')[2]}.json"):
            record = read_json(path)
            if record is not None and record["name"] == name:
                yield record


def standing(folder: Path, listed: Iterable[Job]) -> dict[Path, Job]:
    """Return the runs of all unfinished jobs that were submitted from this folder of sweeps, each with its job."""
    jobs = [job for job in listed if not job.is_over]
    packs = {record["name"]: record["packs"] for record in records(folder, {job.name for job in jobs})}
    return {Path(run): job for job in jobs if job.name in packs for run in packs[job.name][job.index]}


def lookup(jobs: Mapping[str, Job], name: str) -> Job | None:
    """Find a job by id; Slurm lists an array that was cancelled before it began as one job, with the array's id."""
    array = jobs.get(name.partition("_")[0])
    return jobs.get(name) or (array if array is not None and array.is_over else None)


def ended(job: Job | None, name: str, log: Path | None = None) -> str:
    """Describe in words how a job ended."""
    if job is None:
        return f"Slurm knows no job {name} any more"
    if job.state == "CANCELLED":
        return f"its Slurm job {name} was cancelled"
    return f"its Slurm job {name} ended ({job.state})" + (f"; see {log}" if log is not None else "")


def never_began(job: Job | None, name: str) -> Status:
    """Return the status for a run that was still queued when its job ended."""
    said = f"{ended(job, name)}" + (" before the run began" if job is not None else ", and the run never began")
    is_cancelled = job is not None and job.state == "CANCELLED"
    return Status(State.PLANNED if is_cancelled else State.FAILED, error=said)


def settle(run_dir: Path, name: str, job: Job | None, log: Path | None = None) -> bool:
    """Correct the status of a run that is still queued although its job has ended; returns whether it was changed."""
    with status_lock(run_dir):
        status = read_status(run_dir)
        if status.state is not State.QUEUED or status.job not in (name, None) or queue.is_elsewhere(status):
            return False
        settled = never_began(job, name)
        where = f"; see {log}" if log is not None and log.exists() else ""
        set_status(run_dir, dataclasses.replace(settled, error=f"{settled.error}{where}"))
        return True


class Known:
    """Slurm's knowledge of this user's jobs, queried when the first run needs it."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """The reason why Slurm could not be queried, None otherwise."""
        self._asked = 0.0

    @cached_property
    def jobs(self) -> dict[str, Job] | None:
        """This user's jobs by id; None if Slurm cannot be queried."""
        if shutil.which("squeue") is None:
            self.problem = "there is no Slurm here to ask (squeue is not on the PATH)"
            return None
        self._asked = time.time()
        try:
            return {job.id: job for job in squeue(ended=True)}
        except UserError as error:
            self.problem = str(error)
            return None

    @cached_property
    def _standing(self) -> dict[Path, dict[Path, Job]]:
        return {}

    def told(self, runs: Iterable[Listed]) -> Iterator[Listed]:
        """Yield the runs with the state of their Slurm jobs; those whose jobs only ``sacct`` may know come last."""
        forgotten = []
        for run in runs:
            name = self._job_of(run)
            if name is None:
                yield _left(run)
            elif self.jobs is None:
                yield dataclasses.replace(run, job=name, next="Slurm cannot be asked here")
            elif (job := lookup(self.jobs, name)) is not None:
                yield _told(run, name, job)
            elif (run.status.since or 0.0) > self._asked - SKEW:
                yield dataclasses.replace(run, job=name)
            elif run.path.stat().st_uid != os.getuid():
                yield dataclasses.replace(run, job=name, next="another's job, which Slurm does not show")
            else:
                forgotten.append((run, name))
        late = sacct([name for _, name in forgotten])
        for run, name in forgotten:
            job = lookup(late, name)
            yield _told(run, name, job if job is not None and job.is_over else None)

    def _job_of(self, run: Listed) -> str | None:
        """Return the id of the job that has to train an unfinished run; None if it has none or needs none."""
        status = run.status
        if run.state is State.BROKEN or status.state.has_ended:
            return None
        if status.job is not None or status.state is not State.QUEUED or queue.is_elsewhere(status):
            return status.job
        folder = sweeps_dir(run.path.parent)  # the submitting process may have died before it recorded the job
        if folder not in self._standing:
            is_ours = any(folder.glob(f"*/{FOLDER}/*.json"))
            listed = list((self.jobs or {}).values()) if is_ours else []
            self._standing[folder] = standing(folder, listed)
        found = self._standing[folder].get(run.path)
        return None if found is None else found.id


def _left(run: Listed) -> Listed:
    """Return a run without a scheduler's job, with ``next`` set to what a person has to do for it to continue."""
    status = run.status
    if run.state in (State.INTERRUPTED, State.PREEMPTED):
        return dataclasses.replace(run, next="the same command goes on")
    if run.state is State.LOST:
        return dataclasses.replace(run, next=TAKE_UP)
    if run.state is State.QUEUED and status.is_on_this_host and not queue.is_elsewhere(status):
        said = f"the process that had queued it is gone; {TAKE_UP}"
        return dataclasses.replace(run, state=State.PLANNED, next=said)
    return run


def _told(run: Listed, name: str, job: Job | None) -> Listed:
    if job is not None and not job.is_over:
        stopped = run.state in (State.PREEMPTED, State.INTERRUPTED, State.LOST)
        on = job.wants or ("goes on by itself" if stopped else None)
        return dataclasses.replace(run, job=name, job_state=str(job), next=on)
    word = "gone" if job is None else str(job)
    if run.state is State.RUNNING:
        return dataclasses.replace(run, job=name, job_state=word)
    now = read_status(run.path)
    if now != run.status:  # it went on, or ended, while Slurm was asked
        return dataclasses.replace(run, status=now, state=now.shown, job=name, job_state=word)
    if run.state is State.QUEUED:
        settled = never_began(job, name)
        return dataclasses.replace(
            run, state=settled.state, job=name, job_state=word, next=f"{settled.error}; {TAKE_UP}"
        )
    return dataclasses.replace(run, job=name, job_state=word, next=f"{ended(job, name)}; the same command goes on")


def told(runs: Iterable[Listed], problems: list[str] | None = None) -> Iterator[Listed]:
    """Yield the runs with the state of their Slurm jobs; if Slurm cannot be queried, ``problems`` gets the reason."""
    known = Known()
    yield from known.told(runs)
    if known.problem is not None and problems is not None:
        problems.append(known.problem)


def release(run_dirs: Sequence[Path], jobs: Sequence[Job]) -> set[str]:
    """Cancel (``scancel``) the jobs of these cancelled runs that have no other unfinished run; returns their ids."""
    wanted = {str(run_dir) for run_dir in run_dirs}
    folders = {sweeps_dir(run_dir.parent) for run_dir in run_dirs}
    live = [job for job in jobs if not job.is_over]
    packs = {r["name"]: r["packs"] for folder in folders for r in records(folder, {job.name for job in live})}
    done = []
    for job in live:
        pack = packs[job.name][job.index] if job.name in packs else []
        if wanted.intersection(pack) and all(run in wanted or _has_ended(Path(run)) for run in pack):
            done.append(job.id)
    for first in range(0, len(done), 1000):
        subprocess.run(["scancel", *done[first : first + 1000]], capture_output=True)
    return set(done)


def _has_ended(run_dir: Path) -> bool:
    return read_status(run_dir).state.has_ended
