"""``mixersweep wandb sync``: upload runs that are not completely at W&B, each from its run directory.

The client's own files are not read, since the run directory holds all that W&B gets. So a torn file of a killed client
loses nothing, and no row is uploaded twice. Worker processes upload, each with its own client; the process that starts
them does not import wandb.
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
    Destination,
    Identity,
    artifact_files,
    read_identity,
    read_uploaded,
    write_identity,
    write_lock,
)

BUSY = "is being trained, and mirrored meanwhile"


@dataclass(frozen=True)
class SyncOptions:
    """How runs are uploaded.

    ``project`` and ``entity`` are those of each run's settings where they are None. With ``again``, runs that are
    already at W&B are uploaded too. ``timeout`` is the seconds to wait for an answer, ``jobs`` the runs at once.
    """

    project: str | None = None
    entity: str | None = None
    again: bool = False
    timeout: float = 60.0
    jobs: int = 4


@dataclass
class SyncResult:
    """The runs by result: uploaded, already there, without anything to upload, in training, or failed with a reason."""

    uploaded: list[Path] = field(default_factory=list)
    already_there: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    training: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    run_dir: Path
    destination: Destination
    with_checkpoint: bool
    timeout: float


@dataclass(frozen=True)
class _Outcome:
    """The result of uploading one run: ``problem`` is None where it is complete at W&B.

    ``is_over`` says that no other run could be uploaded either, and ``no_key`` that the API key is missing.
    """

    problem: str | None = None
    is_over: bool = False
    no_key: bool = False


def sync(runs: Iterable[Listed], options: SyncOptions, on_done: Callable[[Path, str | None], None]) -> SyncResult:
    """Upload the runs that are not completely at W&B; ``on_done`` gets each when it is done, and its problem or None.

    Where W&B does not answer, the remaining runs are not tried. Raises ``UserError`` without an API key.
    """
    synced, jobs = SyncResult(), []
    for run in runs:
        if run.state is State.BROKEN:
            synced.failed[run.path] = f"is broken: {run.reason}"
            on_done(run.path, synced.failed[run.path])
        elif run.status.is_alive:
            synced.training.append(run.path)
        elif not _has_begun(run):
            synced.empty.append(run.path)
        elif not options.again and _is_uploaded(run, options):
            synced.already_there.append(run.path)
        else:
            settings = _tracking(run)
            jobs.append(_Job(run.path, _destination(run, options), settings.checkpoint, options.timeout))
    for job, outcome in _upload_all(jobs, options.jobs):
        if outcome.no_key:
            raise UserError(NO_KEY)
        if outcome.problem is None:
            synced.uploaded.append(job.run_dir)
        elif outcome.problem == BUSY:
            synced.training.append(job.run_dir)
            continue
        else:
            synced.failed[job.run_dir] = outcome.problem
        on_done(job.run_dir, outcome.problem)
    return synced


def _has_begun(run: Listed) -> bool:
    return run.result is not None or run.row is not None or run.state in (State.FAILED, State.DIVERGED)


def _is_uploaded(run: Listed, options: SyncOptions) -> bool:
    """Whether everything of the run is recorded as uploaded to its destination."""
    uploaded, destination = read_uploaded(run.path), _destination(run, options)
    if uploaded is None or uploaded.id != _identity(run.path).id or uploaded.state != run.state:
        return False
    files = artifact_files(run.state, _tracking(run).checkpoint)
    same_rows = run.result is not None or uploaded.epoch == (run.row and run.row["epoch"])
    same_destination = (uploaded.project, uploaded.entity) == (destination.project, destination.entity)
    return same_rows and same_destination and set(files) <= set(uploaded.files)


def _tracking(run: Listed) -> Tracking:
    return Tracking(**run.config["tracking"])


def _destination(run: Listed, options: SyncOptions) -> Destination:
    destination = _identity(run.path).destination(_tracking(run))
    return Destination(options.project or destination.project, options.entity or destination.entity)


def _identity(run_dir: Path) -> Identity:
    """The run's identity; a directory without one gets a new one."""
    if read_json(run_dir / "tracking.json") is None:
        write_identity(run_dir, Identity(f"{run_dir.name.rpartition('-')[2]}-").redrawn())
    return read_identity(run_dir)


def _upload_all(jobs: Sequence[_Job], at_once: int) -> Iterator[tuple[_Job, _Outcome]]:
    """Upload in worker processes, yielding each job with its outcome; after an outcome that ``is_over`` none starts."""
    if not jobs:
        return
    leave_agent()
    processes.prepare_environment(os.environ)
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
                    rest = _Outcome(f"not tried, since another run failed: {outcome.problem}", no_key=outcome.no_key)
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
    """Upload one run from its directory, in a worker process."""
    folder = job.run_dir / "wandb"
    try:
        folder.mkdir(exist_ok=True)
        with (folder / LOG).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        with write_lock(job.run_dir).acquire(timeout=0):
            return _send(job)
    except Timeout:
        return _Outcome(BUSY)
    except (MixersweepError, OSError) as error:
        return _Outcome(str(error))


def _send(job: _Job) -> _Outcome:
    import wandb
    from wandb.errors import CommError, UsageError

    from mixersweep.tracking.client import TrainingRun, first_line, lacks_key

    directory = RunDirectory.open(job.run_dir)
    status = directory.status()
    if status.is_alive:
        return _Outcome(BUSY)
    try:
        mirrored = TrainingRun(directory, job.destination, job.timeout, "online")
        mirrored.log(directory.rows())
        return _Outcome(mirrored.end(status.shown, with_checkpoint=job.with_checkpoint))
    except UsageError as error:
        if not lacks_key(error):
            return _Outcome(first_line(error), is_over=True)
        return _Outcome(NO_KEY, is_over=True, no_key=True)
    except CommError as error:
        wandb.teardown()
        return _Outcome(first_line(error), is_over=True)
    except Exception as error:  # the client raises many kinds
        wandb.teardown()
        return _Outcome(first_line(error))
