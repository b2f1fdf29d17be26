"""What Slurm knows of jobs: ``squeue`` is asked once for all runs together, ``sacct`` once for what that has forgotten.

An array's packs of runs stand in ``SWEEP/slurm/TOKEN.json``, and the token is in the array's name: so whoever comes
later learns which runs still stand in the queue, whatever became of the process that put them there.
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
from mixersweep.runs.status import guard
from mixersweep.sweeps import queue

FOLDER = "slurm"
"""In the folder of a sweep: a record and the script of each array, and the jobs' logs."""

OVER = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT"),
    )
)
"""States of jobs that Slurm starts no more; those that it requeues are pending."""

FOR_A_PERSON = {
    "JobHeldAdmin": "held by the cluster's people",
    "DependencyNeverSatisfied": "never begins, what it depends on has failed: cancel it",
    "BadConstraints": "never begins, no node has what it asks for: cancel it",
    "PartitionTimeLimit": "never begins, it asks for more time than its partition gives: cancel it",
}
"""Reasons for waiting with which a job does not go on by itself; being held is another, which has many names."""

SKEW = 1.0
"""Seconds that the clocks of hosts may differ: whether a job was submitted after Slurm was asked."""

TAKE_UP = "the same command takes it up"


@dataclass(frozen=True)
class Job:
    """A job as Slurm knows it, of an array's each by itself; ``state`` and ``reason`` are its own words."""

    id: str
    index: int
    state: str
    reason: str = ""
    name: str = ""

    @property
    def wants(self) -> str | None:
        """What a person has to do before it begins; None where it does so by itself."""
        if self.state != "PENDING":
            return None
        held = f"held: scontrol release {self.id} lets it go on" if "held" in self.reason.lower() else None
        return FOR_A_PERSON.get(self.reason, held)

    @property
    def is_over(self) -> bool:
        """Whether Slurm will not start it again, nor has it running."""
        return self.state in OVER

    def __str__(self) -> str:
        """Its state, and the reason where that says something."""
        told = "" if self.reason in ("", "None") else f" ({self.reason})"
        return f"{self.state}{told}"


def squeue(*, ended: bool = False) -> list[Job]:
    """This user's jobs that Slurm has not ended, or also those that it has ended a short time ago.

    Raises ``UserError`` where Slurm does not answer.
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
        for index in numbers or [None]:  # several of an array that was cancelled before it began
            job = Job(array if index is None else f"{array}_{index}", index or 0, state, reason, name)
            if ended or not job.is_over:
                found.append(job)
    return found


def sacct(jobs: Collection[str]) -> dict[str, Job]:
    """What Slurm's accounting says of jobs, as far as there is one."""
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
    """The jobs that accounting calls ``12_[0-3,7%2]``, or one."""
    array, _, listed = name.partition("_[")
    yield from (f"{array}_{index}" for index in _indices(listed.rstrip("]"))) if listed else [name]


def _indices(text: str) -> list[int]:
    """The numbers of an array's jobs in what Slurm calls ``0-3,7%2``; none in ``N/A``."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def refusal(said: str) -> str:
    """What a command of Slurm's says went wrong, on a line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    shown = errors or [line for line in lines if not line.startswith(("Try ", "Usage:"))]
    return "; ".join(dict.fromkeys(shown)) or "Slurm does not answer"


def records(folder: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    """What was written down of the arrays of these names that were submitted from a folder of sweeps."""
    for name in names:
        for path in folder.glob(f"*/{FOLDER}/{name.rpartition('-')[2]}.json"):
            record = read_json(path)
            if record is not None and record["name"] == name:
                yield record


def standing(folder: Path, listed: Iterable[Job]) -> dict[Path, Job]:
    """The runs of all arrays that were submitted from this folder of sweeps and are not over, each with its job."""
    jobs = [job for job in listed if not job.is_over]
    packs = {record["name"]: record["packs"] for record in records(folder, {job.name for job in jobs})}
    return {Path(run): job for job in jobs if job.name in packs for run in packs[job.name][job.index]}


def lookup(jobs: Mapping[str, Job], name: str) -> Job | None:
    """What is known of a job; an array that was cancelled before any of it began is a single one to Slurm."""
    array = jobs.get(name.partition("_")[0])
    return jobs.get(name) or (array if array is not None and array.is_over else None)


def ended(job: Job | None, name: str, log: Path | None = None) -> str:
    """What became of a job that is over, in words."""
    if job is None:
        return f"Slurm knows no job {name} any more"
    if job.state == "CANCELLED":
        return f"its Slurm job {name} was cancelled"
    return f"its Slurm job {name} ended ({job.state})" + (f"; see {log}" if log is not None else "")


def never_began(job: Job | None, name: str) -> Status:
    """The state of a run that its job has left queued."""
    said = f"{ended(job, name)}" + (" before the run began" if job is not None else ", and the run never began")
    is_cancelled = job is not None and job.state == "CANCELLED"
    return Status(State.PLANNED if is_cancelled else State.FAILED, error=said)


def settle(run_dir: Path, name: str, job: Job | None, log: Path | None = None) -> bool:
    """Write of a run what its job, which is over, has left undone; whether there was something."""
    with guard(run_dir):
        status = read_status(run_dir)
        if status.state is not State.QUEUED or status.job not in (name, None) or queue.is_elsewhere(status):
            return False
        settled = never_began(job, name)
        where = f"; see {log}" if log is not None and log.exists() else ""
        set_status(run_dir, dataclasses.replace(settled, error=f"{settled.error}{where}"))
        return True


class Known:
    """What can be said of runs once Slurm was asked; it is asked when the first run makes it necessary."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """Why Slurm could not be asked."""
        self._asked = 0.0

    @cached_property
    def jobs(self) -> dict[str, Job] | None:
        """This user's jobs by what a run calls them; None where nobody can be asked."""
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
        """The runs as Slurm has them; those whose jobs only ``sacct`` may still know come last."""
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
        """The job that a run which is not over was given to; None without one, or where it needs none to go on."""
        status = run.status
        if run.state is State.BROKEN or status.state.has_ended:
            return None
        if status.job is not None or status.state is not State.QUEUED or queue.is_elsewhere(status):
            return status.job
        folder = sweeps_dir(run.path.parent)  # whoever submitted it may have died before the run named its job
        if folder not in self._standing:
            is_ours = any(folder.glob(f"*/{FOLDER}/*.json"))
            listed = list((self.jobs or {}).values()) if is_ours else []
            self._standing[folder] = standing(folder, listed)
        found = self._standing[folder].get(run.path)
        return None if found is None else found.id


def _left(run: Listed) -> Listed:
    """A run that stands in no scheduler's queue, with what is to be done where nobody takes it up by itself."""
    status = run.status
    if run.state in (State.INTERRUPTED, State.PREEMPTED):
        return dataclasses.replace(run, next="the same command goes on")
    if run.state is State.LOST:
        return dataclasses.replace(run, next=TAKE_UP)
    if run.state is State.QUEUED and status.is_of_this_host and not queue.is_elsewhere(status):
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
    """The runs with what Slurm knows of their jobs; where it could not be asked, ``problems`` takes the reason."""
    known = Known()
    yield from known.told(runs)
    if known.problem is not None and problems is not None:
        problems.append(known.problem)


def release(run_dirs: Sequence[Path], jobs: Sequence[Job]) -> set[str]:
    """``scancel``, once, the jobs of cancelled runs where all their other runs have ended too; returns which."""
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
