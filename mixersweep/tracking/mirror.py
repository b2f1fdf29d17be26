"""The process beside a training that sends the rows of its runs' ``metrics.jsonl`` to Weights & Biases.

It reads everything from the run directories. It is online where the client finds an API key, else offline in
``RUN_DIR/wandb/``, where it writes all rows each time, since an offline run cannot be resumed.

All runs that a training holds at once share this process and its client. Each has its own thread and is finished by
itself, so a run that is refused or gets no answer does not block the others. The last line of a run's
``wandb/mirror.log`` gives the result. What the client prints, mostly without naming the run, is in the first run's log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import wandb
from wandb.errors import CommError, UsageError

from mixersweep.config.schema import Tracking
from mixersweep.errors import FAILED
from mixersweep.runs import RunDirectory, read_status
from mixersweep.runs.state import State
from mixersweep.tracking.client import TrainingRun, first_line, remove_client_files
from mixersweep.tracking.identity import LOG, MIRRORED, RESULT_PREFIX, read_identity, write_lock

POLL = 0.5
"""Seconds between two reads of the run directories."""

TO_SYNC = "; `mixersweep wandb sync` sends it"

MARGIN = 2.0
"""Seconds by which the client gives up before the training does, so that this process ends with complete files."""


def main() -> int:
    """Mirror runs until each has ended; returns 0 where all of them are fully mirrored, else 1."""
    parser = argparse.ArgumentParser(prog="python -m mixersweep.tracking")
    parser.add_argument("run_dir", help="the first of the runs, to recognise the process by")
    parser.add_argument("--parent", type=int, required=True, help="the process that holds the runs")
    parent = parser.parse_args().parent
    asked = json.load(sys.stdin)  # the settings of each run by its directory

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))  # wandb-core closes its files and follows
    os.nice(10)
    client = _Client()
    runs = [_Mirrored(Path(run_dir), Tracking(**settings), client) for run_dir, settings in asked.items()]
    for run in runs:
        run.start()
    _watch(runs, parent)
    last = threading.Timer(max(1.0, *(run.tracking.timeout for run in runs)), os._exit, [FAILED])
    last.daemon = True  # nothing of W&B outlives this
    last.start()
    for run in runs:
        run.join()
    if client.is_stuck:
        os._exit(FAILED)
    return 1 if any(run.problem for run in runs) else 0


def _watch(runs: Sequence[_Mirrored], parent: int) -> None:
    """Check the states of runs until all trainings have ended."""
    going = list(runs)
    while going:
        for run in going:
            run.check_state(parent)
        going = [run for run in going if not run.ended.is_set()]
        if going:
            time.sleep(POLL)


class _StuckError(Exception):
    """Raised where the client cannot be restarted, since it would wait for a run whose end was given up."""


class _Client:
    """The W&B client that the runs share; it can be restarted while no run is open.

    A run whose opening failed counts as in use in that client, so only a new client can open it offline.
    """

    def __init__(self) -> None:
        self.is_stuck = False
        self._changed = threading.Condition()
        self._users = self._number = 0

    @contextmanager
    def in_use(self, after: int = 0) -> Iterator[int]:
        """Use a client with a number above ``after``, and yield its number; waits until the client can be restarted."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or not self._users)
            if self._number <= after:
                if self.is_stuck:
                    raise _StuckError
                if self._number:
                    wandb.teardown()
                wandb.setup()  # once, before threads open runs side by side
                self._number = after + 1
            self._users += 1
            number = self._number
        try:
            yield number
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()


class _Mirrored(threading.Thread):
    """The thread that mirrors one run; ``problem`` says what of it is not mirrored, and why."""

    def __init__(self, run_dir: Path, tracking: Tracking, client: _Client) -> None:
        super().__init__(name=run_dir.name, daemon=True)
        self.tracking = tracking
        self.problem: str | None = None
        self.ended = threading.Event()
        self._run_dir, self._client, self._state = run_dir, client, State.RUNNING

    def check_state(self, parent: int) -> None:
        """Read the run's state and note where it has ended; it is ``lost`` where the training no longer holds it."""
        try:
            status = read_status(self._run_dir)
        except (OSError, ValueError):  # a file system can fail for a while; the next read decides
            return
        held = os.getppid() == parent == status.pid
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
        with contextlib.suppress(OSError), (self._run_dir / "wandb" / LOG).open("a") as log:
            log.write(f"{RESULT_PREFIX}{self.problem or MIRRORED}\n")

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
        except UsageError:
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
