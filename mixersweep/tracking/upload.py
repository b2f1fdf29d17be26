"""``mixersweep wandb sync``: what of many runs is not at W&B goes up, each out of its run directory.

The client's own files are not read, since every run directory holds all that W&B gets: so a file that a killed client
left half loses nothing, and the same rows never go up twice. Workers do it, each with a client of its own. The process
that starts them imports no wandb.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from filelock import Timeout

from mixersweep.config.schema import Tracking
from mixersweep.errors import MixersweepError, UserError
from mixersweep.runs import RunDirectory
from mixersweep.runs.files import read_json
from mixersweep.runs.listing import Listed
from mixersweep.runs.state import State
from mixersweep.tracking import leave_agent, processes
from mixersweep.tracking.identity import (
    LOG,
    NO_KEY,
    Identity,
    Place,
    artifact_files,
    read_identity,
    read_uploaded,
    write_identity,
    writing,
)

BUSY = "is being trained, and mirrored meanwhile"


@dataclass(frozen=True)
class Wish:
    """How runs are uploaded: where to, else each to where its settings say; ``again`` those that are there already too.

    ``timeout`` is how many seconds are waited for an answer, ``jobs`` how many runs go up at once.
    """

    project: str | None = None
    entity: str | None = None
    again: bool = False
    timeout: float = 60.0
    jobs: int = 4


@dataclass
class Synced:
    """What became of the runs: those that went up, were there already, have nothing yet or train, and did not go up."""

    uploaded: list[Path] = field(default_factory=list)
    there: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    training: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    run_dir: Path
    place: Place
    with_checkpoint: bool
    timeout: float


@dataclass(frozen=True)
class _Outcome:
    """``problem`` is None for a run that is whole at W&B; ``is_over``: no other run would go up either."""

    problem: str | None = None
    is_over: bool = False
    no_key: bool = False


def sync(runs: Iterable[Listed], wish: Wish, told: Callable[[Path, str | None], None]) -> Synced:
    """Upload what is not there; ``told`` takes each run when it is done, and why it did not go up.

    Where nobody answers, the rest is not tried. Raises ``UserError`` where there is no key.
    """
    synced, jobs = Synced(), []
    for run in runs:
        if run.state is State.BROKEN:
            synced.failed[run.path] = f"is broken: {run.reason}"
            told(run.path, synced.failed[run.path])
        elif run.status.alive:
            synced.training.append(run.path)
        elif not _has_begun(run):
            synced.empty.append(run.path)
        elif not wish.again and _is_there(run, wish):
            synced.there.append(run.path)
        else:
            settings = _tracking(run)
            jobs.append(_Job(run.path, _place(run, wish), settings.checkpoint, wish.timeout))
    for job, outcome in _carried_out(jobs, wish.jobs):
        if outcome.no_key:
            raise UserError(NO_KEY)
        if outcome.problem is None:
            synced.uploaded.append(job.run_dir)
        elif outcome.problem == BUSY:
            synced.training.append(job.run_dir)
            continue
        else:
            synced.failed[job.run_dir] = outcome.problem
        told(job.run_dir, outcome.problem)
    return synced


def _has_begun(run: Listed) -> bool:
    return run.result is not None or run.row is not None or run.state in (State.FAILED, State.DIVERGED)


def _is_there(run: Listed, wish: Wish) -> bool:
    """Whether all that there is of the run is known to be at W&B."""
    uploaded, place = read_uploaded(run.path), _place(run, wish)
    if uploaded is None or uploaded.id != _identity(run.path).id or uploaded.state != run.state:
        return False
    files = artifact_files(run.state, _tracking(run).checkpoint)
    same_rows = run.result is not None or uploaded.epoch == (run.row and run.row["epoch"])
    same_place = (uploaded.project, uploaded.entity) == (place.project, place.entity)
    return same_rows and same_place and set(files) <= set(uploaded.files)


def _tracking(run: Listed) -> Tracking:
    return Tracking(**run.config["tracking"])


def _place(run: Listed, wish: Wish) -> Place:
    place = _identity(run.path).place(_tracking(run))
    return Place(wish.project or place.project, wish.entity or place.entity)


def _identity(run_dir: Path) -> Identity:
    """The run's identity; one is drawn for a directory that has lost it."""
    if read_json(run_dir / "tracking.json") is None:
        write_identity(run_dir, Identity(f"{run_dir.name.rpartition('-')[2]}-").redrawn())
    return read_identity(run_dir)


def _carried_out(jobs: Sequence[_Job], at_once: int) -> Iterator[tuple[_Job, _Outcome]]:
    """Each job with its outcome, as they end; after one that says that it is over, no other is begun."""
    if not jobs:
        return
    leave_agent()
    processes.settle(os.environ)
    waiting = deque(jobs)
    running: dict[Future[_Outcome], _Job] = {}
    pool = ProcessPoolExecutor(min(at_once, len(jobs)), get_context("spawn"), initializer=_ignore_interrupts)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                running[pool.submit(_upload, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                outcome = _outcome(future)
                yield running.pop(future), outcome
                if outcome.is_over:
                    rest = _Outcome(f"not tried, since another was not taken: {outcome.problem}", no_key=outcome.no_key)
                    yield from ((job, rest) for job in waiting)
                    waiting.clear()
        pool.shutdown()
    except BaseException:
        processes.end_workers()
        raise
    finally:
        pool.shutdown(wait=False)


def _outcome(future: Future[_Outcome]) -> _Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return _Outcome("the process that sent it was killed", is_over=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _upload(job: _Job) -> _Outcome:
    """In a worker: send one run whole, out of its directory."""
    folder = job.run_dir / "wandb"
    try:
        folder.mkdir(exist_ok=True)
        with (folder / LOG).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        with writing(job.run_dir).acquire(timeout=0):
            return _sent(job)
    except Timeout:
        return _Outcome(BUSY)
    except (MixersweepError, OSError) as error:
        return _Outcome(str(error))


def _sent(job: _Job) -> _Outcome:
    import wandb
    from wandb.errors import CommError, UsageError

    from mixersweep.tracking.client import TrainingRun, lacks_key, line

    directory = RunDirectory.open(job.run_dir)
    status = directory.status()
    if status.alive:
        return _Outcome(BUSY)
    try:
        mirrored = TrainingRun(directory, job.place, job.timeout, "online")
        mirrored.log(directory.rows())
        return _Outcome(mirrored.end(status.shown, with_checkpoint=job.with_checkpoint))
    except UsageError as error:
        if not lacks_key(error):
            return _Outcome(line(error), is_over=True)
        return _Outcome(NO_KEY, is_over=True, no_key=True)
    except CommError as error:
        wandb.teardown()
        return _Outcome(line(error), is_over=True)
    except Exception as error:  # of the client, which names many
        wandb.teardown()
        return _Outcome(line(error))
