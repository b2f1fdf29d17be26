"""The process beside trainings that sends the rows of their runs' ``metrics.jsonl`` to Weights & Biases.

It gets the runs from its stdin, a line of JSON for each training that begins, and ends when stdin has ended and all
runs have. All else it reads from the run directories. It is online where the client finds an API key, else offline in
``RUN_DIR/wandb/``, where it writes all rows each time, since an offline run cannot be resumed.

All runs of a job, or of a training outside one, share this process and its client. Each has its own thread and is
finished by itself, so a run that is refused or gets no answer does not block the others. The last line of a run's
``wandb/mirror.log`` gives the result. What the client prints, mostly without naming the run, is in the first run's log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import wandb
from wandb.errors import CommError, UsageError

from mixersweep.config.schema import Tracking
from mixersweep.errors import FAILED
from mixersweep.runs import RunDirectory, read_status
from mixersweep.runs.files import write_text
from mixersweep.runs.state import State
from mixersweep.tracking.client import TrainingRun, first_line, lacks_key, remove_client_files
from mixersweep.tracking.identity import (
    LOG,
    MIRRORED,
    OFFLINE,
    PAGE_PREFIX,
    RESULT_PREFIX,
    project_of,
    read_identity,
    write_lock,
)

POLL = 0.5
"""Seconds between two reads of the run directories."""

TO_SYNC = "; `mixersweep wandb sync` sends it"

MARGIN = 2.0
"""Seconds by which the client gives up before the training does, so that this process ends with complete files."""


def main() -> int:
    """Mirror runs until each has ended; returns 0 where all of them are fully mirrored, else 1."""
    parser = argparse.ArgumentParser(prog="python -m mixersweep.tracking")
    parser.add_argument("run_dir", help="the first of the runs, to recognise the process by")
    parser.add_argument("--page", type=Path, help="the file that gets the URL of the runs' project")
    page = parser.parse_args().page

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))  # wandb-core closes its files and follows
    os.nice(10)
    client, mirroring = _Client(page), _Mirroring()
    reader = threading.Thread(target=_read, args=(_own_stdin(), client, mirroring), daemon=True)
    reader.start()
    while reader.is_alive() or mirroring.going:
        mirroring.check_states()
        reader.join(POLL)
        if not reader.is_alive() and mirroring.going:
            time.sleep(POLL)
    last = threading.Timer(mirroring.timeout, os._exit, [FAILED])
    last.daemon = True  # nothing of W&B outlives this
    last.start()
    mirroring.join()
    if client.is_stuck:
        os._exit(FAILED)
    return 1 if mirroring.has_problem else 0


def _own_stdin() -> TextIO:
    """Stdin for this process alone: were it open in wandb-core too, trainings could hand over to a dead mirror."""
    own = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return os.fdopen(own)


def _read(lines: TextIO, client: _Client, mirroring: _Mirroring) -> None:
    """Start to mirror the runs of each training that a line tells of, until the lines end."""
    for line in lines:
        told = json.loads(line)
        for run_dir, settings in told["runs"].items():
            mirroring.add(_Mirrored(Path(run_dir), told["pid"], Tracking(**settings), client))


class _Mirroring:
    """The runs that are mirrored: those ``going`` are still trained, the others wait for their last answers."""

    def __init__(self) -> None:
        self.going: list[_Mirrored] = []
        self.timeout = 1.0
        self.has_problem = False
        self._ended: list[_Mirrored] = []

    def add(self, run: _Mirrored) -> None:
        """Start to mirror a run."""
        self.timeout = max(self.timeout, run.tracking.timeout)
        run.start()
        self.going.append(run)

    def check_states(self) -> None:
        """Check which trainings have ended, and forget the runs that are done."""
        for run in list(self.going):
            run.check_state()
            if run.ended.is_set():
                self._ended.append(run)
                self.going.remove(run)
        for run in self._ended:
            self.has_problem |= run.problem is not None
        self._ended = [run for run in self._ended if run.is_alive()]

    def join(self) -> None:
        """Wait for all runs."""
        for run in self._ended:
            run.join()
            self.has_problem |= run.problem is not None


class _StuckError(Exception):
    """Raised where the client cannot be restarted, since it would wait for a run whose end was given up."""


class _Client:
    """The W&B client that the runs share; it can be restarted while no run is open.

    A run whose opening failed counts as in use in that client, so only a new client can open it offline. The first run
    that is online has the URL of its project written to the file ``page``.
    """

    def __init__(self, page: Path | None) -> None:
        self.is_stuck = False
        self._page = page
        self._changed = threading.Condition()
        self._users = self._number = self._given_up = 0

    @contextmanager
    def in_use(self, after: int = 0) -> Iterator[int]:
        """Use a client with a number above ``after``, and yield its number; waits until the client can be restarted."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > max(after, self._given_up) or not self._users)
            if self._number <= max(after, self._given_up):
                if self.is_stuck:
                    raise _StuckError(f"W&B gave no answer to another run{TO_SYNC}")
                if self._number:
                    wandb.teardown()
                wandb.setup()  # once, before threads open runs side by side
                self._number += 1
            self._users += 1
            number = self._number
        try:
            yield number
        except (Exception, SystemExit):
            with self._changed:  # its service may be gone, so no further run uses it
                self._given_up = max(self._given_up, number)
            raise
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def write_page(self, run_url: str) -> None:
        """Write the URL of the project of a run that is online, once."""
        with self._changed:
            page, self._page = self._page, None
        if page is not None:
            with contextlib.suppress(OSError):
                page.parent.mkdir(parents=True, exist_ok=True)
                write_text(page, project_of(run_url))


class _Mirrored(threading.Thread):
    """The thread that mirrors one run; ``problem`` says what of it is not mirrored, and why."""

    def __init__(self, run_dir: Path, pid: int, tracking: Tracking, client: _Client) -> None:
        super().__init__(name=run_dir.name, daemon=True)
        self.tracking = tracking
        self.problem: str | None = None
        self.ended = threading.Event()
        self._run_dir, self._pid, self._client, self._state = run_dir, pid, client, State.RUNNING
        self._is_offline = False

    def check_state(self) -> None:
        """Read the run's state and note where it has ended; it is ``lost`` where the training no longer holds it."""
        try:
            status = read_status(self._run_dir)
        except (OSError, ValueError):  # a file system can fail for a while; the next read decides
            return
        held = status.pid == self._pid and status.is_alive
        self._state = State.LOST if status.state is State.RUNNING and not held else status.state
        if self._state is not State.RUNNING:
            self.ended.set()

    def run(self) -> None:
        """Mirror the run, and write the result as the last line of its log."""
        try:
            (self._run_dir / "wandb").mkdir(exist_ok=True)
            with write_lock(self._run_dir):  # an earlier mirror may still be waiting for an answer
                self.problem = self._mirror(RunDirectory.open(self._run_dir))
        except (Exception, SystemExit) as error:  # the client exits where its service has failed
            self.problem = first_line(error)
        self._write(RESULT_PREFIX, self.problem or (OFFLINE if self._is_offline else MIRRORED))

    def _write(self, prefix: str, text: str) -> None:
        with contextlib.suppress(OSError), (self._run_dir / "wandb" / LOG).open("a") as log:
            log.write(f"{prefix}{text}\n")

    def _mirror(self, directory: RunDirectory) -> str | None:
        """Follow the run to its end, online or else in files; returns what is not mirrored and why, or None."""
        with self._client.in_use() as number:
            mirrored, problem = self._open_online(directory)
            if mirrored is not None:
                return self._follow(directory, mirrored)
        try:
            with self._client.in_use(after=number):
                problem = self._follow(directory, self._open(directory, "offline")) or problem
        except _StuckError:
            pass
        return problem

    def _open_online(self, directory: RunDirectory) -> tuple[TrainingRun | None, str | None]:
        """Open the run online, or in files where there is no key; returns None and the reason without an answer."""
        try:
            return self._open(directory, None), None
        except UsageError as error:
            if not lacks_key(error):
                return None, f"{first_line(error)}{TO_SYNC}"
            return self._open(directory, "offline"), None
        except CommError as error:
            return None, f"{first_line(error)}{TO_SYNC}"

    def _open(self, directory: RunDirectory, mode: str | None) -> TrainingRun:
        destination = read_identity(self._run_dir).destination(self.tracking)
        return TrainingRun(directory, destination, max(1.0, self.tracking.timeout - MARGIN), mode)

    def _follow(self, directory: RunDirectory, mirrored: TrainingRun) -> str | None:
        """Log rows as they are written, and finish the W&B run when the run has ended; returns the problem, or None."""
        if mirrored.run.disabled:
            return None
        self._is_offline = mirrored.run.offline
        if not self._is_offline and mirrored.run.url:
            self._write(PAGE_PREFIX, mirrored.run.url)
            self._client.write_page(mirrored.run.url)
        remove_client_files(self._run_dir / "wandb", keep=Path(mirrored.run.dir).parent)
        seen = None
        while True:
            ended = self.ended.is_set()  # read before the rows, which are complete once the run has ended
            size = _size(self._run_dir / "metrics.jsonl")
            if size != seen:
                mirrored.log(directory.rows())
                seen = size
            if ended:
                break
            self.ended.wait(POLL)
        problem = mirrored.end(self._state, with_checkpoint=self.tracking.checkpoint)
        self._client.is_stuck |= mirrored.is_stuck
        return f"{problem}{TO_SYNC}" if problem else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
