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
from mixersweep.sweeps.launchers import StopRequest
from mixersweep.sweeps.launchers.slurm_queue import FOLDER, lookup, sacct, settle, squeue, standing
from mixersweep.sweeps.launchers.slurm_script import LOGS, script, snapshot, submit
from mixersweep.sweeps.many import Progress, each
from mixersweep.sweeps.outcome import outcome
from mixersweep.sweeps.packs import packs

T = TypeVar("T")

SOONEST, LATEST = 1.0, 15.0
"""Bounds, in seconds, on the pause between two looks at the queue, which is a twentieth of the time waited."""

CODE = ".code"
"""The directory, in the folder of all sweeps, with a copy of each version of the program that jobs run."""

OWN = {
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
        return None if self.time == "auto" else _seconds(self.time)

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

    def sharing(self, gpus: int) -> int:
        """Return the number of packs that share each of the job's GPUs."""
        return math.ceil(self.at_once / max(1, gpus))


def checked(values: Mapping[str, Any]) -> SlurmSettings:
    """Parse and check the launcher's settings; raises ``UserError`` for invalid or contradictory values."""
    settings = config.settings(SlurmSettings, values, "hydra.launcher.")
    for name, value in (settings.sbatch or {}).items():
        key = name.replace("-", "_")
        if key in OWN:
            raise UserError(f"hydra.launcher.sbatch.{name}={value}: set hydra.launcher.{OWN[key]}")
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
    settings = checked(values)
    for tool in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(tool) is None:
            raise UserError(f"hydra/launcher=slurm: there is no Slurm here ({tool} is not on the PATH); use local")
    return Slurm(settings, folder)


class Slurm:
    """The launcher that submits runs to Slurm; ``folder`` is the sweep's, on a file system that all nodes share."""

    def __init__(self, settings: SlurmSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._waiting: dict[Path, str] = {}

    def queued(self, jobs: Sequence[Path]) -> Collection[Path]:
        """Return those of the runs that have a job which is waiting or running in Slurm and will train them."""
        self._waiting = {}
        if jobs:
            wanted = {run_dir for run_dir in jobs if read_status(run_dir).state.is_for_a_job}
            found = standing(self._folder.parent, squeue())
            self._waiting = {run_dir: job.id for run_dir, job in found.items() if run_dir in wanted}
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

    def scripts(self, run: config.Config, jobs: int) -> list[str]:
        """Return the scripts that ``sbatch`` would get for ``jobs`` jobs, without writing or submitting anything."""
        record = self._folder / FOLDER / "TOKEN.json"
        code = self._folder.parent / CODE / "HASH" if self._settings.snapshot else _live()
        parts = _batched(range(jobs), _largest_array())
        return [script(record, self._asked(self._name("TOKEN"), run, len(part)), code) for part in parts]

    def _submit(self, jobs: Sequence[Path], report: Callable[[str], None]) -> None:
        """Submit the runs in as few arrays as Slurm's limit allows, and record each run's job in its status."""
        first = RunDirectory.open(jobs[0]).run.config
        gpus = self._settings.gpus_of_a_job(first.device)
        made = packs(jobs, self._settings.pack, on_gpu=gpus > 0, sharing=self._settings.sharing(gpus))
        batches = [tuple(itertools.chain(*some)) for some in _batched(made, self._settings.runs_per_job)]
        for note in notes(self._settings, first, len(jobs)):
            report(f"note: {note}")
        code = snapshot(self._folder.parent / CODE) if self._settings.snapshot else _live()
        if not self._settings.snapshot:
            report(f"note: hydra.launcher.snapshot=false: jobs run the program in {code} as it is when they begin")
        progress = Progress("submitted", len(jobs), report)
        for part in _batched(batches, _largest_array()):
            token = secrets.token_hex(4)
            name = self._name(token)
            record = self._folder / FOLDER / f"{token}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            asked = {key: getattr(self._settings, key) for key in ("grace", "pack", "mps", "runs_per_job", "requeues")}
            texts = [[str(run_dir) for run_dir in batch] for batch in part]
            more = {"at_once": self._settings.at_once, "gpus": gpus, "code": str(code)}
            write_json(record, {"name": name, **asked, **more, "packs": texts})
            try:
                array = submit(script(record, self._asked(name, first, len(part)), code), record.with_suffix(".sh"))
            except UserError:
                record.unlink()
                raise
            runs = sum(map(len, part))
            report(f"slurm: {runs} runs in {len(part)} jobs of array {array}, called {name}")
            given = {run_dir: f"{array}_{index}" for index, batch in enumerate(part) for run_dir in batch}
            self._waiting |= given
            for _ in each(lambda one: queue.pass_on(*one), given.items()):
                progress.step()

    def _name(self, token: str) -> str:
        plain = re.sub(r"[^\w.-]", "_", self._folder.name)[:60]
        return f"{plain}-{token}"

    def _asked(self, name: str, first: config.Config, count: int) -> dict[str, Any]:
        """Return the options for sbatch; an option that is None is left to the cluster."""
        own, most = self._settings, self._settings.array_parallelism
        gpus = own.gpus_of_a_job(first.device)
        kind = f"{own.gpu_type}:" if own.gpu_type else ""
        return {
            **{key: getattr(own, key) for key in ("partition", "account", "qos", "time", "mem", "constraint")},
            "cpus_per_task": own.cpus_of_a_job(first.threads),
            "gpus_per_node": f"{kind}{gpus}" if gpus else None,
            "array": f"0-{count - 1}" + (f"%{most}" if most else ""),
            "signal": f"USR2@{own.grace}",
            "job_name": name,
            **(own.sbatch or {}),
        }

    def _wait(self, stop: StopRequest, report: Callable[[str], None]) -> None:
        """Wait until every run has ended, or Slurm no longer lists its job and no process trains it."""
        began, total = time.monotonic(), len(self._waiting)
        missed: set[Path] = set()
        while self._waiting:
            known = _jobs_or_none()
            gone: dict[Path, str] = {}
            for run_dir, job in list(self._waiting.items()):
                status = read_status(run_dir)
                if not status.state.has_ended:
                    if known is None or job in known or status.is_alive:
                        missed.discard(run_dir)
                        continue
                    if run_dir not in missed:  # a network file system may still show an older status
                        missed.add(run_dir)
                        continue
                    gone[run_dir] = job
                    continue
                self._ended(run_dir, total, report)
            if gone:
                self._settle(gone)
                for run_dir in gone:
                    self._ended(run_dir, total, report)
            pause = time.monotonic() + min(LATEST, max(SOONEST, 0.05 * (time.monotonic() - began)))
            while self._waiting and time.monotonic() < pause:
                stop.check()
                time.sleep(0.2)

    def _ended(self, run_dir: Path, total: int, report: Callable[[str], None]) -> None:
        del self._waiting[run_dir]
        report(f"{outcome(run_dir)}  {len(self._waiting)} of {total} left")

    def _settle(self, gone: Mapping[Path, str]) -> None:
        """Record, for runs whose jobs are gone, how the jobs ended."""
        try:
            late = {job.id: job for job in squeue(ended=True)}
        except UserError:
            late = {}
        late |= sacct({job for job in gone.values() if lookup(late, job) is None})
        for run_dir, job in gone.items():
            settle(run_dir, job, lookup(late, job), self._folder / FOLDER / LOGS.format(job=job))


def notes(settings: SlurmSettings, run: config.Config, runs: int) -> list[str]:
    """Return warnings about settings that are valid but probably unintended (too few cores for the runs' threads)."""
    cpus, at_once = settings.cpus_of_a_job(run.threads), min(settings.at_once, runs)
    threads = run.threads if isinstance(run.threads, int) else 1
    wanted = at_once * threads
    if settings.gpus_of_a_job(run.device) or wanted <= (cpus or 1):
        return []
    share = f"{at_once} runs at once of {threads} thread{'' if threads == 1 else 's'}" if at_once > 1 else "its threads"
    given = f"{cpus} core{'' if cpus == 1 else 's'}" if cpus else "what the cluster gives without being asked"
    return [f"hydra.launcher.cpus={_shown(settings.cpus)}: {share} share {given}; {wanted} would give each its own"]


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _live() -> Path:
    return Path(__file__).parents[3]


def _jobs_or_none() -> set[str] | None:
    """Return the ids of this user's jobs that Slurm has not ended, or None if Slurm does not answer."""
    try:
        return {job.id for job in squeue()}
    except UserError:
        return None


def _largest_array() -> int:
    if shutil.which("scontrol") is None:
        return 1001
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return max(1, int(limit[1])) if limit else 1001


def _batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    return (tuple(items[first : first + size]) for first in range(0, len(items), size))


def _seconds(limit: int | str | None) -> float | None:
    """Convert a time limit as sbatch takes it (minutes, [D-]H:M:S, M:S, D-H[:M]) to seconds; raises ``UserError``."""
    if limit is None or isinstance(limit, int):
        return None if limit is None else 60.0 * limit
    read = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if read is None:
        raise UserError(f"hydra.launcher.time={limit}: expects minutes, or a text such as 12:00:00 or 1-12:00:00")
    days, *parts = [None if part is None else int(part) for part in read.groups()]
    first, second, third = parts
    if days is not None or third is not None:
        return ((days or 0) * 24 + (first or 0)) * 3600.0 + 60 * (second or 0) + (third or 0)
    return 60.0 * (first or 0) + (second or 0)
