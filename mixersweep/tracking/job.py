"""One mirror for all runs of a job: of a sweep on this machine, of a job of Slurm, of a task of Ray.

The job starts it (``mirror_of_job``) with a pipe as its stdin. Trainings inherit the other end, and each writes a line
when it begins (``hand_over``). The mirror ends when the job and all its trainings have closed the pipe. If it dies, the
trainings that begin later mirror for themselves, and those under way notice nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mixersweep.config.schema import Tracking
from mixersweep.errors import MixersweepError
from mixersweep.runs import RunDirectory
from mixersweep.tracking import processes
from mixersweep.tracking.identity import (
    HANDED_OVER,
    LOG,
    MIRRORED,
    OFFLINE,
    PAGE_PREFIX,
    RESULT_PREFIX,
    project_of,
)

PIPE = "MIXERSWEEP_MIRROR_PIPE"
"""The variable with the pipe to the mirror of the job, as ``descriptor:inode``."""

PAGE_FILE = "page.txt"
"""The file, in ``RUNS_DIR/.sweeps/NAME/wandb/``, with the URL of the project at W&B that the sweep's runs went to."""

NAMED = 3
"""The most reasons to give why runs are not fully mirrored."""


@contextmanager
def mirror_of_job(run_dirs: Sequence[Path], folder: Path, report: Callable[[str], None]) -> Iterator[int | None]:
    """Mirror the runs of a job from one process; yields the pipe through which their trainings hand over, or None.

    The process writes the URL of the runs' project at W&B into the sweep's ``folder``. The pipe is None where the first
    run has ``tracking=none``, or where the process cannot be started: then trainings mirror for themselves. Afterwards
    this waits at most ``tracking.timeout`` seconds, and no process is left behind.
    """
    first = run_dirs[0]
    try:
        tracking = RunDirectory.open(first).run.config.tracking
    except (MixersweepError, OSError):  # its training says what is wrong with it
        tracking = None
    if tracking is None or tracking.name != "wandb":
        yield None
        return
    reading, writing = os.pipe()
    process = None
    try:
        command = [sys.executable, "-m", "mixersweep.tracking", str(first), f"--page={page_file(folder)}"]
        process, _ = processes.start(command, first / "wandb" / LOG, pipe=reading)
    except OSError as error:
        report(f"W&B: no mirror of the job ({error})")
    finally:
        os.close(reading)
    if process is None:
        os.close(writing)
        yield None
        return
    os.set_blocking(writing, False)  # a mirror that does not read holds up no training
    try:
        yield writing
    finally:
        os.close(writing)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, tracking.timeout - processes.GRACE))
        finally:
            processes.end(process)


def pipe_environment(pipe: int | None) -> dict[str, str]:
    """The variable that tells trainings of the pipe to the mirror of their job; none without a pipe."""
    return {} if pipe is None else {PIPE: f"{pipe}:{os.fstat(pipe).st_ino}"}


def hand_over(runs: Mapping[Path, Tracking]) -> bool:
    """Tell the mirror of the job of these runs; returns whether there is one, and it will read of them."""
    descriptor, _, inode = os.environ.get(PIPE, "").partition(":")
    try:
        found = os.fstat(int(descriptor))
        if not stat.S_ISFIFO(found.st_mode) or str(found.st_ino) != inode:
            return False
        lines = [announcement({run_dir: tracking}).encode() for run_dir, tracking in runs.items()]
        if max(map(len, lines)) > select.PIPE_BUF:  # longer ones could mix with those of others
            return False
        for run_dir, line in zip(runs, lines, strict=True):
            log = run_dir / "wandb" / LOG
            log.parent.mkdir(exist_ok=True)
            with log.open("a") as file:
                file.write(f"{RESULT_PREFIX}{HANDED_OVER}\n")
            os.write(int(descriptor), line)
    except (OSError, ValueError):
        return False
    return True


def announcement(runs: Mapping[Path, Tracking]) -> str:
    """The line that announces the runs of this process to a mirror."""
    settings = {str(run_dir): dataclasses.asdict(tracking) for run_dir, tracking in runs.items()}
    return json.dumps({"pid": os.getpid(), "runs": settings}) + "\n"


def page_file(folder: Path) -> Path:
    """The file in a sweep's folder with the URL of the project at W&B."""
    return folder / "wandb" / PAGE_FILE


def describe_page(project: str) -> str:
    """The line that tells a person the URL of a sweep's project at W&B."""
    return f"W&B: {project}"


def wait_for_results(run_dirs: Iterable[Path], timeout: float, check: Callable[[], None]) -> None:
    """Wait at most ``timeout`` seconds until the mirrors of jobs elsewhere have a result for these runs, which ended.

    A job of a cluster ends only after its mirror, so its last runs are complete a little before they are mirrored.
    """
    deadline, waiting = time.monotonic() + timeout, list(run_dirs)
    while waiting := [run_dir for run_dir in waiting if _last_result(run_dir) == HANDED_OVER]:
        check()
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)


def _last_result(run_dir: Path) -> str | None:
    return processes.last_line(run_dir / "wandb" / LOG, 0, RESULT_PREFIX)


def describe_mirroring(run_dirs: Iterable[Path], *, with_page: bool = True) -> list[str]:
    """Describe in a few lines what became of the mirroring of runs: the page, what is offline, what is not mirrored."""
    found: dict[str, str] = {}
    page = None
    for run_dir in run_dirs:
        result, url = processes.last_lines(run_dir / "wandb" / LOG, 0, RESULT_PREFIX, PAGE_PREFIX)
        if result is not None:
            found[run_dir.name] = "its mirror has not finished" if result == HANDED_OVER else result
        page = page or url
    lines = [describe_page(project_of(page))] if page is not None and with_page else []
    if offline := sum(result == OFFLINE for result in found.values()):
        lines.append(f"W&B: {offline} of {len(found)} runs are written offline; `mixersweep wandb sync` sends them")
    reasons: dict[str, list[str]] = {}
    for name, text in found.items():
        if text not in (MIRRORED, OFFLINE):
            reasons.setdefault(text.partition("; `")[0], []).append(name)
    if reasons:
        parts = [f"{names[0]}{_and_others(len(names) - 1)}: {reason}" for reason, names in reasons.items()]
        more = sum(map(len, list(reasons.values())[NAMED:]))
        count = f"{sum(map(len, reasons.values()))} of {len(found)} runs"
        named = "; ".join([*parts[:NAMED], *([f"and {more} others"] if more else [])])
        lines.append(f"W&B: {count} not fully mirrored ({named}); `mixersweep wandb sync` sends them")
    return lines


def _and_others(count: int) -> str:
    return f" and {count} other{'s' * (count > 1)}" if count else ""
