"""Train the runs of a sweep as one Slurm job array (``hydra/launcher=slurm``).

A job (``slurm_job``) executes one run, or several that share its allocation. Before an array is submitted, the runs of
each job are written to ``SWEEP/slurm/TOKEN.json``. Its jobs read nothing else, so the array is complete even if the
submitting process dies right after ``sbatch``. The state of a run is read from its directory; Slurm is only asked
whether it still knows the job (``slurm_queue``).
"""

from __future__ import annotations

import itertools
import math
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mixersweep import config
from mixersweep.errors import RunStopped, UserError
from mixersweep.kinds import Auto, Count, Whole
from mixersweep.runs import RunDirectory, read_status
from mixersweep.runs.files import write_json
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import PROGRAM, Capacity, Launcher, StopRequest
from mixersweep.sweeps.launchers.slurm_queue import (
    RECORDS_FOLDER,
    correct_status,
    find_job,
    runs_in_queue,
    sacct,
    squeue,
)
from mixersweep.sweeps.launchers.slurm_script import LOG_NAME, batch_script, snapshot, submit
from mixersweep.sweeps.many import Progress, map_parallel
from mixersweep.sweeps.outcome import outcome_line
from mixersweep.sweeps.packs import pack_jobs

T = TypeVar("T")

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
"""Bounds, in seconds, on the pause between two looks at the queue, which is a twentieth of the time waited."""

CODE_FOLDER = ".code"
"""The directory, in the folder of all sweeps, with a copy of each version of the program that jobs run."""

SETTING_OF_OPTION = {
    **{name: name for name in ("partition", "account", "qos", "time", "mem", "constraint")},
    **{"cpus_per_task": "cpus", "gpus_per_node": "gpus", "array": "array_parallelism", "signal": "grace"},
}
"""The options of sbatch that the launcher has a setting for, each with the name of that setting."""


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """The settings of ``hydra/launcher=slurm``; its YAML file explains each."""

    name: Literal["slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    time: Count | str | None
    gpus: Whole | Auto
    gpu_type: str | None = None
    cpus: Count | Auto | None
    mem: str | None
    constraint: str | None
    array_parallelism: Count | None
    runs_per_job: Count
    runs_at_once: Count | None = None
    pack: Count | Auto = "auto"
    mps: bool = True
    sbatch: dict[str, str | int | float | bool | None] | None
    grace: Count
    requeues: Count = 5
    snapshot: bool = True
    wait: bool

    @property
    def at_once(self) -> int:
        """The number of runs, or packs of runs, that a job trains at once."""
        return min(self.runs_per_job, self.runs_at_once or self.runs_per_job)

    @property
    def seconds(self) -> float | None:
        """The time limit of a job in seconds, None if unset or ``auto``; raises ``UserError`` for an invalid text."""
        return None if self.time == "auto" else _limit_seconds(self.time)

    def gpus_of_a_job(self, device: str) -> int:
        """Return the number of GPUs that a job requests for runs with this ``device`` setting."""
        if self.gpus != "auto":
            return self.gpus
        return 0 if device == "cpu" else 1

    def cpus_of_a_job(self, threads: int | str) -> int | None:
        """Return the number of cores that a job requests; None leaves it to the cluster, which usually gives one."""
        if self.cpus != "auto":
            return self.cpus
        return self.at_once * (threads if isinstance(threads, int) else 1)

    def packs_per_gpu(self, gpus: int) -> int:
        """Return the number of packs that share each of the job's GPUs."""
        return math.ceil(self.at_once / max(1, gpus))


def parse_settings(values: Mapping[str, Any]) -> SlurmSettings:
    """Parse and check the launcher's settings; raises ``UserError`` for invalid or contradictory values."""
    settings = config.settings(SlurmSettings, values, "hydra.launcher.")
    for name, value in (settings.sbatch or {}).items():
        key = name.replace("-", "_")
        if key in SETTING_OF_OPTION:
            raise UserError(f"hydra.launcher.sbatch.{name}={value}: set hydra.launcher.{SETTING_OF_OPTION[key]}")
        if key in ("job_name", "output", "error", "open_mode", "requeue", "nodes", "ntasks"):
            raise UserError(f"hydra.launcher.sbatch.{name}={value}: the launcher itself sets it")
    limit = settings.seconds
    if limit is not None and settings.grace >= limit:
        raise UserError(
            f"hydra.launcher.grace={settings.grace}: jobs of {limit:g} s would stop before they began; "
            f"at most {max(1, math.ceil(limit / 2))}"
        )
    if settings.runs_at_once is not None and settings.runs_at_once > settings.runs_per_job:
        raise UserError(
            f"hydra.launcher.runs_at_once={settings.runs_at_once}: a job has {settings.runs_per_job} runs; "
            f"raise hydra.launcher.runs_per_job"
        )
    return settings


def launcher(values: Mapping[str, Any], folder: Path) -> Slurm:
    """Build the Slurm launcher; raises ``UserError`` for invalid settings, and on a machine without Slurm."""
    settings = parse_settings(values)
    for tool in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(tool) is None:
            raise UserError(f"hydra/launcher=slurm: there is no Slurm here ({tool} is not on the PATH); use local")
    return Slurm(settings, folder)


def capacity(values: Mapping[str, Any], run_config: config.Config, jobs: int) -> Capacity:
    """Return whether jobs request GPUs, and how many packs share one; raises ``UserError`` for invalid settings."""
    del jobs
    settings = parse_settings(values)
    gpus = settings.gpus_of_a_job(run_config.device)
    return Capacity(gpus > 0, settings.packs_per_gpu(gpus))


class Slurm(Launcher):
    """The launcher that submits runs to Slurm; ``folder`` is the sweep's, on a file system that all nodes share."""

    def __init__(self, settings: SlurmSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._waiting: dict[Path, str] = {}

    def queued(self, jobs: Sequence[Path]) -> Collection[Path]:
        """Return those of the runs that have a job which is waiting or running in Slurm and will train them."""
        self._waiting = {}
        if jobs:
            unfinished = {run_dir for run_dir in jobs if read_status(run_dir).state.is_for_a_job}
            in_queue = runs_in_queue(self._folder.parent, squeue())
            self._waiting = {run_dir: job.id for run_dir, job in in_queue.items() if run_dir in unfinished}
        return list(self._waiting)

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Submit the runs; with ``wait=true``, wait for them and for those that ``queued`` found."""
        if self._waiting:
            report(f"slurm: {len(self._waiting)} runs are in the queue already")
        if jobs:
            self._submit(jobs, report)
        if not self._settings.wait:
            runs_dir = self._folder.parent.parent
            report(f"they go on by themselves; to watch them: mixersweep status {shlex.quote(str(runs_dir))}, squeue")
            return False
        try:
            self._wait(stop, report)
        except RunStopped:
            report(
                f"{len(self._waiting)} runs go on in Slurm's queue: the same command waits for them again, "
                "mixersweep cancel ends them"
            )
            raise
        return True

    def batch_scripts(self, run: config.Config, jobs: int) -> list[str]:
        """Return the scripts that ``sbatch`` would get for ``jobs`` jobs, without writing or submitting anything."""
        record = self._folder / RECORDS_FOLDER / "TOKEN.json"
        code = self._folder.parent / CODE_FOLDER / "HASH" if self._settings.snapshot else PROGRAM
        sizes = map(len, _batched(range(jobs), _largest_array()))
        return [batch_script(record, self._sbatch_options(self._name("TOKEN"), run, size), code) for size in sizes]

    def _submit(self, jobs: Sequence[Path], report: Callable[[str], None]) -> None:
        """Submit the runs in as few arrays as Slurm's limit allows, and record each run's job in its status."""
        first = RunDirectory.open(jobs[0]).run.config
        gpus = self._settings.gpus_of_a_job(first.device)
        packs = pack_jobs(jobs, self._settings.pack, on_gpu=gpus > 0, packs_per_gpu=self._settings.packs_per_gpu(gpus))
        runs_of_jobs = [tuple(itertools.chain(*some)) for some in _batched(packs, self._settings.runs_per_job)]
        for note in notes(self._settings, first, len(jobs)):
            report(f"note: {note}")
        code = snapshot(self._folder.parent / CODE_FOLDER) if self._settings.snapshot else PROGRAM
        if not self._settings.snapshot:
            report(f"note: hydra.launcher.snapshot=false: jobs run the program in {code} as it is when they begin")
        progress = Progress("submitted", len(jobs), report)
        for array_jobs in _batched(runs_of_jobs, _largest_array()):
            token = secrets.token_hex(4)
            name = self._name(token)
            record = self._folder / RECORDS_FOLDER / f"{token}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            copied = {key: getattr(self._settings, key) for key in ("grace", "pack", "mps", "runs_per_job", "requeues")}
            derived = {"at_once": self._settings.at_once, "gpus": gpus, "code": str(code)}
            packs_of_jobs = [[str(run_dir) for run_dir in run_dirs] for run_dirs in array_jobs]
            write_json(record, {"name": name, **copied, **derived, "packs": packs_of_jobs})
            text = batch_script(record, self._sbatch_options(name, first, len(array_jobs)), code)
            try:
                array = submit(text, record.with_suffix(".sh"))
            except UserError:
                record.unlink()
                raise
            runs = sum(map(len, array_jobs))
            report(f"slurm: {runs} runs in {len(array_jobs)} jobs of array {array}, called {name}")
            assigned = {run_dir: f"{array}_{i}" for i, run_dirs in enumerate(array_jobs) for run_dir in run_dirs}
            self._waiting |= assigned
            for _ in map_parallel(lambda item: queue.assign_to_job(*item), assigned.items()):
                progress.step()

    def _name(self, token: str) -> str:
        plain = re.sub(r"[^\w.-]", "_", self._folder.name)[:60]
        return f"{plain}-{token}"

    def _sbatch_options(self, name: str, first: config.Config, count: int) -> dict[str, Any]:
        """Return the options for sbatch; an option that is None is left to the cluster."""
        settings, limit = self._settings, self._settings.array_parallelism
        gpus = settings.gpus_of_a_job(first.device)
        prefix = f"{settings.gpu_type}:" if settings.gpu_type else ""
        return {
            **{key: getattr(settings, key) for key in ("partition", "account", "qos", "time", "mem", "constraint")},
            "cpus_per_task": settings.cpus_of_a_job(first.threads),
            "gpus_per_node": f"{prefix}{gpus}" if gpus else None,
            "array": f"0-{count - 1}" + (f"%{limit}" if limit else ""),
            "signal": f"USR2@{settings.grace}",
            "job_name": name,
            **(settings.sbatch or {}),
        }

    def _wait(self, stop: StopRequest, report: Callable[[str], None]) -> None:
        """Wait until every run has ended, or Slurm no longer lists its job and no process trains it."""
        start, total = time.monotonic(), len(self._waiting)
        missed: set[Path] = set()
        while self._waiting:
            live_jobs = _jobs_or_none()
            gone: dict[Path, str] = {}
            for run_dir, job in list(self._waiting.items()):
                status = read_status(run_dir)
                if not status.state.has_ended:
                    if live_jobs is None or job in live_jobs or status.is_alive:
                        missed.discard(run_dir)
                        continue
                    if run_dir not in missed:  # a network file system may still show an older status
                        missed.add(run_dir)
                        continue
                    gone[run_dir] = job
                    continue
                self._report_ended(run_dir, total, report)
            if gone:
                self._correct_lost(gone)
                for run_dir in gone:
                    self._report_ended(run_dir, total, report)
            deadline = time.monotonic() + min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 0.05 * (time.monotonic() - start)))
            while self._waiting and time.monotonic() < deadline:
                stop.check()
                time.sleep(0.2)

    def _report_ended(self, run_dir: Path, total: int, report: Callable[[str], None]) -> None:
        del self._waiting[run_dir]
        report(f"{outcome_line(run_dir)}  {len(self._waiting)} of {total} left")

    def _correct_lost(self, gone: Mapping[Path, str]) -> None:
        """Record, for runs whose jobs are gone, how the jobs ended."""
        try:
            ended_jobs = {job.id: job for job in squeue(ended=True)}
        except UserError:
            ended_jobs = {}
        ended_jobs |= sacct({job for job in gone.values() if find_job(ended_jobs, job) is None})
        for run_dir, job in gone.items():
            correct_status(
                run_dir, job, find_job(ended_jobs, job), self._folder / RECORDS_FOLDER / LOG_NAME.format(job=job)
            )


def notes(settings: SlurmSettings, run: config.Config, runs: int) -> list[str]:
    """Return warnings about settings that are valid but probably unintended (too few cores for the runs' threads)."""
    cpus, at_once = settings.cpus_of_a_job(run.threads), min(settings.at_once, runs)
    threads = run.threads if isinstance(run.threads, int) else 1
    needed = at_once * threads
    if settings.gpus_of_a_job(run.device) or needed <= (cpus or 1):
        return []
    several = f"{at_once} runs at once of {threads} thread{'' if threads == 1 else 's'}"
    sharers = several if at_once > 1 else "its threads"
    available = f"{cpus} core{'' if cpus == 1 else 's'}" if cpus else "what the cluster gives without being asked"
    given = "null" if settings.cpus is None else settings.cpus
    return [f"hydra.launcher.cpus={given}: {sharers} share {available}; {needed} would give each its own"]


def _jobs_or_none() -> set[str] | None:
    """Return the ids of this user's jobs that Slurm has not ended, or None if Slurm does not answer."""
    try:
        return {job.id for job in squeue()}
    except UserError:
        return None


def _largest_array() -> int:
    if shutil.which("scontrol") is None:
        return 1001
    output = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", output, re.MULTILINE)
    return max(1, int(limit[1])) if limit else 1001


def _batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    return (tuple(items[first : first + size]) for first in range(0, len(items), size))


def _limit_seconds(limit: int | str | None) -> float | None:
    """Convert a time limit as sbatch takes it (minutes, [D-]H:M:S, M:S, D-H[:M]) to seconds; raises ``UserError``."""
    if limit is None or isinstance(limit, int):
        return None if limit is None else 60.0 * limit
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        raise UserError(f"hydra.launcher.time={limit}: expects minutes, or a text such as 12:00:00 or 1-12:00:00")
    days, *parts = [None if part is None else int(part) for part in match.groups()]
    first, second, third = parts
    if days is not None or third is not None:
        return ((days or 0) * 24 + (first or 0)) * 3600.0 + 60 * (second or 0) + (third or 0)
    return 60.0 * (first or 0) + (second or 0)
