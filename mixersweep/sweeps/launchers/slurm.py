"""``hydra/launcher=slurm``: one array of jobs for all runs of a sweep, handed to Slurm by submitit.

A job (``slurm_job``) executes one run, or several that share its allocation. Before an array is submitted, its packs of
runs are written to ``SWEEP/slurm/TOKEN.json``, and the token is in the name of the array: so whoever comes later learns
from ``squeue`` which runs still stand in the queue, whatever became of the process that put them there. What became of
a run stands in its directory; Slurm is only asked whether it still knows the job.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
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
from mixersweep.paths import sweeps_dir
from mixersweep.runs import RunDirectory, Status, read_status, set_status
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State
from mixersweep.runs.status import guard
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import StopRequest
from mixersweep.sweeps.launchers.slurm_job import execute_pack, job_state
from mixersweep.sweeps.outcome import outcome
from mixersweep.sweeps.packs import packs

T = TypeVar("T")

FOLDER = "slurm"
"""In the folder of a sweep: a record of each array, and submitit's files: what was submitted, and the jobs' logs."""

SOONEST, LATEST = 1.0, 15.0
"""Seconds between two looks at the queue: a twentieth of the time waited, within these."""

OWN = {
    **{name: name for name in ("partition", "account", "qos", "time", "mem", "constraint")},
    **{"cpus_per_task": "cpus", "gpus_per_node": "gpus", "array": "array_parallelism", "signal": "grace"},
}
"""Settings of sbatch that have a name of their own here."""


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """``hydra.launcher`` of ``hydra/launcher=slurm``; what they mean stands in its YAML."""

    name: Literal["slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    time: Count | str | None
    gpus: Whole | Auto
    cpus: Count | None
    mem: str | None
    constraint: str | None
    array_parallelism: Count | None
    runs_per_job: Count
    pack: Count | Auto = "auto"
    mps: bool = True
    sbatch: dict[str, str | int | float | bool | None] | None
    grace: Count
    wait: bool


@dataclass(frozen=True)
class Listed:
    """What ``squeue`` says of a job: the name of its array and, where it is one of several, its index in it."""

    name: str
    job: str
    index: int


def launcher(values: Mapping[str, Any], folder: Path) -> Slurm:
    """The launcher of these settings; raises ``UserError`` for those that cannot be."""
    settings = config.settings(SlurmSettings, values, "hydra.launcher.")
    for name, value in (settings.sbatch or {}).items():
        key = name.replace("-", "_")
        if key in OWN:
            raise UserError(f"hydra.launcher.sbatch.{name}={value}: set hydra.launcher.{OWN[key]}")
        if key in ("job_name", "output", "error", "open_mode", "requeue", "nodes", "ntasks"):
            raise UserError(f"hydra.launcher.sbatch.{name}={value}: the launcher itself sets it")
    limit = _seconds(settings.time)
    if limit is not None and settings.grace >= limit:
        raise UserError(
            f"hydra.launcher.grace={settings.grace}: jobs of {limit:g} s would stop before they began; "
            f"at most {max(1, math.ceil(limit / 2))}"
        )
    for tool in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(tool) is None:
            raise UserError(f"hydra/launcher=slurm: there is no Slurm here ({tool} is not on the PATH); use local")
    return Slurm(settings, folder)


class Slurm:
    """``hydra/launcher=slurm``; ``folder`` is the sweep's, on a file system that the nodes share."""

    def __init__(self, settings: SlurmSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._waiting: dict[Path, str] = {}

    def queued(self, jobs: Sequence[Path]) -> Collection[Path]:
        """Those of the runs that stand in Slurm's queue, or run there, and that their job will train to the end."""
        self._waiting = {}
        if jobs:
            wanted = {run_dir for run_dir in jobs if read_status(run_dir).state.is_for_a_job}
            found = _standing(self._folder.parent, _squeue())
            self._waiting = {run_dir: job for run_dir, job in found.items() if run_dir in wanted}
        return list(self._waiting)

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Submit the runs, and wait for them, and for those that ``queued`` found, where that is wanted."""
        if self._waiting:
            report(f"slurm: {len(self._waiting)} runs are in the queue already")
        if jobs:
            for name, array, packed in self._submit(jobs):
                runs = sum(map(len, packed.values()))
                report(f"slurm: {runs} runs in {len(packed)} jobs of array {array}, called {name}")
                for job, of_job in packed.items():
                    for run_dir in of_job:
                        queue.pass_on(run_dir, job)
                        self._waiting[run_dir] = job
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

    def _submit(self, jobs: Sequence[Path]) -> Iterator[tuple[str, str, dict[str, tuple[Path, ...]]]]:
        """Submit the runs as one array, or as few as Slurm's limit allows: name and id of each, and its jobs' runs."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        first = RunDirectory.open(jobs[0]).run.config
        gpus = gpus_of_a_job(self._settings, first.device)
        sharing = math.ceil(self._settings.runs_per_job / max(1, gpus))
        made = packs(jobs, self._settings.pack, on_gpu=gpus > 0, sharing=sharing)
        batches = [tuple(itertools.chain(*some)) for some in _batched(made, self._settings.runs_per_job)]
        plain_name = re.sub(r"[^\w.-]", "_", self._folder.name)[:60]
        for part in _batched(batches, _largest_array()):
            token = secrets.token_hex(4)
            name = f"{plain_name}-{token}"
            record = self._folder / FOLDER / f"{token}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            texts = [[str(run_dir) for run_dir in pack] for pack in part]
            asked = {name: getattr(self._settings, name) for name in ("grace", "pack", "mps", "runs_per_job")}
            content = {"name": name, **asked, "packs": texts}
            write_json(record, content)
            executor = submitit.SlurmExecutor(record.parent)
            executor.update_parameters(**self._parameters(name, jobs[0]))
            try:
                with outside_of_a_job():
                    submitted = executor.map_array(execute_pack, [str(record)] * len(part), range(len(part)))
            except (FailedJobError, FailedSubmissionError) as error:
                record.unlink()
                raise UserError(f"hydra/launcher=slurm: {_refusal(str(error))}") from None
            ids = [str(job.job_id) for job in submitted]
            yield name, ids[0].partition("_")[0], dict(zip(ids, part, strict=True))

    def _parameters(self, name: str, first: Path) -> dict[str, Any]:
        """What submitit is told; whatever is null is left to the cluster."""
        own = self._settings
        gpus = gpus_of_a_job(own, RunDirectory.open(first).run.config.device)
        asked = {
            **{key: getattr(own, key) for key in ("partition", "account", "qos", "time", "mem", "constraint")},
            **{"cpus_per_task": own.cpus, "gpus_per_node": gpus or None, "requeue": True},
            **(own.sbatch or {}),
        }
        known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join(dict.fromkeys(filter(None, [str(Path(__file__).parents[3]), *known])))
        return {
            "job_name": name,
            "time": None,
            "wckey": None,
            "signal_delay_s": own.grace,
            "array_parallelism": own.array_parallelism or 10**9,
            "stderr_to_stdout": True,
            "setup": [f"export PYTHONPATH={shlex.quote(path)}", "export PYTHONSAFEPATH=1"],
            "srun_args": [f"--cpus-per-task={own.cpus}"] if own.cpus else [],  # srun no longer takes it from sbatch
            "additional_parameters": {key: value for key, value in asked.items() if value not in (None, False)},
        }

    def _wait(self, stop: StopRequest, report: Callable[[str], None]) -> None:
        """Wait until every run has ended, or Slurm has forgotten its job and nobody trains it."""
        began, total = time.monotonic(), len(self._waiting)
        missed: set[Path] = set()
        while self._waiting:
            listed = _squeue_or_none()
            known = None if listed is None else {one.job for one in listed}
            for run_dir, job in list(self._waiting.items()):
                status = read_status(run_dir)
                if not status.state.has_ended:
                    if known is None or job in known or status.alive:
                        missed.discard(run_dir)
                        continue
                    if run_dir not in missed:  # its directory may be read older than it is, on a network file system
                        missed.add(run_dir)
                        continue
                    _take_out(run_dir, job, self._folder)
                del self._waiting[run_dir]
                report(f"{outcome(run_dir)}  {len(self._waiting)} of {total} left")
            pause = time.monotonic() + min(LATEST, max(SOONEST, 0.05 * (time.monotonic() - began)))
            while self._waiting and time.monotonic() < pause:
                stop.check()
                time.sleep(0.2)


@contextlib.contextmanager
def outside_of_a_job() -> Iterator[None]:
    """Within this, the environment says nothing of the job that this process may be in: sbatch would pass it on.

    What says where the cluster is stays, and so do a person's own settings of sbatch (``SBATCH_*``).
    """
    of_a_job = [name for name in os.environ if name.startswith(_OF_JOB) and name not in _OF_CLUSTER]
    before = {name: os.environ.pop(name) for name in of_a_job}
    try:
        yield
    finally:
        os.environ.update(before)


_OF_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
_OF_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")


def gpus_of_a_job(settings: SlurmSettings, device: str) -> int:
    """How many a job asks for whose runs ask for this device."""
    if settings.gpus != "auto":
        return settings.gpus
    return 0 if device == "cpu" else 1


def release(run_dir: Path, job: str) -> bool:
    """``scancel`` the job of a run that is cancelled, where all its other runs have ended too; whether it was."""
    if shutil.which("squeue") is None:
        return False
    listed = [one for one in _squeue_or_none() or [] if one.job == job]
    folder = sweeps_dir(run_dir.parent)
    packs = [record["packs"][one.index] for one in listed for record in _records(folder, [one.name])]
    if not any(str(run_dir) in pack and all(_has_ended(Path(run)) for run in pack) for pack in packs):
        return False
    return subprocess.run(["scancel", job], capture_output=True).returncode == 0


def _has_ended(run_dir: Path) -> bool:
    return read_status(run_dir).state.has_ended


def _standing(folder: Path, listed: Sequence[Listed]) -> dict[Path, str]:
    """The runs of all arrays that were submitted from this folder of sweeps and are listed, each with its job."""
    packs = {record["name"]: record["packs"] for record in _records(folder, {one.name for one in listed})}
    return {Path(run): one.job for one in listed if one.name in packs for run in packs[one.name][one.index]}


def _records(folder: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        for path in folder.glob(f"*/{FOLDER}/{name.rpartition('-')[2]}.json"):
            record = read_json(path)
            if record is not None and record["name"] == name:
                yield record


def _take_out(run_dir: Path, job: str, folder: Path) -> None:
    """Say of a run whose job is gone before it began what became of the job."""
    word = job_state(job) or "unknown to Slurm by now"
    with guard(run_dir):
        status = read_status(run_dir)
        if (status.state, status.job) == (State.QUEUED, job) and not queue.is_elsewhere(status):
            log = folder / FOLDER / f"{job}_0_log.out"
            said = f"its Slurm job {job} ended ({word}) before the run began; see {log}"
            set_status(run_dir, Status(State.PLANNED) if word == "CANCELLED" else Status(State.FAILED, error=said))


def _squeue() -> list[Listed]:
    """This user's jobs that Slurm has not ended yet, those of an array each by itself; raises ``UserError``."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%j"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"hydra/launcher=slurm: {_refusal(done.stderr)}")
    found = []
    for line in done.stdout.splitlines():
        array, index, name = line.strip().split("|", 2)
        is_one_of_many = index.isdigit()
        found.append(Listed(name, f"{array}_{index}" if is_one_of_many else array, int(index) if is_one_of_many else 0))
    return found


def _squeue_or_none() -> list[Listed] | None:
    """The same, None where Slurm does not answer now."""
    try:
        return _squeue()
    except UserError:
        return None


def _largest_array() -> int:
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return max(1, int(limit[1])) if limit else 1001


def _batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    return (tuple(items[first : first + size]) for first in range(0, len(items), size))


def _refusal(said: str) -> str:
    """What a command of Slurm's says went wrong, on a line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    return "; ".join(dict.fromkeys(errors)) or (lines[-1] if lines else "Slurm does not answer")


def _seconds(limit: int | str | None) -> float | None:
    """A time limit as sbatch takes it (minutes, [D-]H:M:S, M:S, D-H[:M]), in seconds; raises ``UserError``."""
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
