"""The process beside a training that sends the rows of its runs' ``metrics.jsonl`` to Weights & Biases.

It reads the run directories and holds nothing that is not there. Online where the client finds an API key, else offline
in ``RUN_DIR/wandb/``, whole each time, since an offline run cannot be resumed.

All runs that a training has at once share this process and its client. Each has a thread and an end of its own, so one
that is refused, or gets no answer, holds up no other. The last line of a run's ``wandb/mirror.log`` says how it went;
what the client prints meanwhile, mostly without a word on which run it means, is in that of the first run.
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
from mixersweep.tracking.client import TrainingRun, clear, line
from mixersweep.tracking.identity import LOG, SAYS, WHOLE, read_identity, writing

POLL = 0.5
"""Seconds between two looks at the run directories."""

TO_SYNC = "; `mixersweep wandb sync` sends it"

MARGIN = 2.0
"""Seconds by which W&B gives up before the training does, so that this process ends by itself with its files whole."""


def main() -> int:
    """Mirror runs until each has ended; 0 where all of them are mirrored whole, else 1."""
    parser = argparse.ArgumentParser(prog="python -m mixersweep.tracking")
    parser.add_argument("run_dir", help="the first of the runs, for whoever looks at the processes")
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
    """Tell each run when its training has ended, until all have."""
    going = list(runs)
    while going:
        for run in going:
            run.look(parent)
        going = [run for run in going if not run.ended.is_set()]
        if going:
            time.sleep(POLL)


class _StuckError(Exception):
    """The client cannot be begun anew: it would wait for what somebody has stopped waiting for."""


class _Client:
    """The client, which the runs share; one that got no answer for a run can be begun anew while no run is open.

    A run whose opening failed counts as in use there, so it can be opened offline in a new client only.
    """

    def __init__(self) -> None:
        self.is_stuck = False
        self._changed = threading.Condition()
        self._users = self._begun = 0

    @contextmanager
    def in_use(self, after: int = 0) -> Iterator[int]:
        """A client later than that of this number, and its own number; waits until there can be one."""
        with self._changed:
            self._changed.wait_for(lambda: self._begun > after or not self._users)
            if self._begun <= after:
                if self.is_stuck:
                    raise _StuckError
                if self._begun:
                    wandb.teardown()
                wandb.setup()  # once, before threads open runs side by side
                self._begun = after + 1
            self._users += 1
            number = self._begun
        try:
            yield number
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()


class _Mirrored(threading.Thread):
    """One run, mirrored from its opening to its end; ``problem`` says what of it is not, and why."""

    def __init__(self, run_dir: Path, tracking: Tracking, client: _Client) -> None:
        super().__init__(name=run_dir.name, daemon=True)
        self.tracking = tracking
        self.problem: str | None = None
        self.ended = threading.Event()
        self._run_dir, self._client, self._state = run_dir, client, State.RUNNING

    def look(self, parent: int) -> None:
        """Store the state of the run where it has ended; ``lost`` where the training no longer holds it."""
        try:
            status = read_status(self._run_dir)
        except (OSError, ValueError):  # of a disk or a network for a while; the next look tells
            return
        held = os.getppid() == parent == status.pid
        self._state = State.LOST if status.state is State.RUNNING and not held else status.state
        if self._state is not State.RUNNING:
            self.ended.set()

    def run(self) -> None:
        """Mirror it; the last line of its log says how that went."""
        try:
            (self._run_dir / "wandb").mkdir(exist_ok=True)
            with writing(self._run_dir):  # an earlier one may still be at it, for as long as it waits for an answer
                self.problem = self._mirror(RunDirectory.open(self._run_dir))
        except (Exception, SystemExit) as error:  # the latter of a client whose service has failed
            self.problem = line(error)
        with contextlib.suppress(OSError), (self._run_dir / "wandb" / LOG).open("a") as log:
            log.write(f"{SAYS}{self.problem or WHOLE}\n")

    def _mirror(self, directory: RunDirectory) -> str | None:
        """Follow the run to its end, at W&B or else in files; returns what is not mirrored and why, or None."""
        with self._client.in_use() as number:
            mirrored, problem = self._online(directory)
            if mirrored is not None:
                return self._follow(directory, mirrored)
        try:
            with self._client.in_use(after=number):
                problem = self._follow(directory, self._opened(directory, "offline")) or problem
        except _StuckError:
            pass
        return problem

    def _online(self, directory: RunDirectory) -> tuple[TrainingRun | None, str | None]:
        """The run at W&B, or in files where there is no key; None and the reason where nobody answers."""
        try:
            return self._opened(directory, None), None
        except UsageError:
            return self._opened(directory, "offline"), None
        except CommError as error:
            return None, f"{line(error)}{TO_SYNC}"

    def _opened(self, directory: RunDirectory, mode: str | None) -> TrainingRun:
        place = read_identity(self._run_dir).place(self.tracking)
        return TrainingRun(directory, place, max(1.0, self.tracking.timeout - MARGIN), mode)

    def _follow(self, directory: RunDirectory, mirrored: TrainingRun) -> str | None:
        """Log the rows as they come, and end the run at W&B when it has ended."""
        if mirrored.run.disabled:
            return None
        clear(self._run_dir / "wandb", keep=Path(mirrored.run.dir).parent)
        seen = None
        while True:
            ended = self.ended.is_set()  # before the rows: those of a run that has ended are all there
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
