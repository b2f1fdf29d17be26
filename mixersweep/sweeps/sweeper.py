"""Execute a sweep: freeze the settings of its runs, hand the unfinished ones to a launcher, and report the results.

Everything is read from and written to run directories, so the same command continues what an earlier one left, even
if that was killed; if nothing is left it launches nothing. Runs that another process trains or has queued are left
alone.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixersweep.config import warnings
from mixersweep.errors import DONE, FAILED, USER_MISTAKE, UserError
from mixersweep.runs import RunDirectory, Status, read_status
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State
from mixersweep.runs.status import watch
from mixersweep.sweeps import queue
from mixersweep.sweeps.cluster import resolved
from mixersweep.sweeps.expand import Expansion, expand
from mixersweep.sweeps.launchers import StopRequest, make
from mixersweep.sweeps.many import Progress, each, summed_up
from mixersweep.sweeps.outcome import error_of, outcome, state_of
from mixersweep.sweeps.point import Point
from mixersweep.tracking import report_sweep
from mixersweep.tracking.job import results
from mixersweep.training.refusal import refuse

PATIENCE = 5.0
"""Seconds to wait for runs that others hold: if their launching process has died, they are about to stop."""

Report = Callable[[str], None]


def sweep(arguments: Sequence[str], stop: StopRequest, report: Report, told: Callable[[Path], None]) -> int:
    """Execute ``train -m ARGUMENTS`` and return its exit code: 0 if every run is completed.

    ``told`` is called with the path of each completed run's ``result.json``, in job order. Raises ``RunStopped`` after
    a signal, once everything has stopped, and ``UserError`` for invalid settings.
    """
    carrying = _Carrying(arguments, stop, report)
    carrying.announce()
    if not carrying.runs:
        report("error: this sweep has no run that can be")
        return USER_MISTAKE
    try:
        while carrying.launched() or carrying.waited():
            pass
    finally:
        for point in carrying.runs:
            if _state(point) is State.COMPLETED and point.run_dir is not None:
                told(point.run_dir / "result.json")
        carrying.conclude()
    carrying.show()
    return carrying.exit_code


class _Carrying:
    """A sweep in progress; ``expansion`` is updated as searches choose learning rates."""

    def __init__(self, arguments: Sequence[str], stop: StopRequest, report: Report) -> None:
        self._arguments, self._stop, self._report = list(arguments), stop, report
        self.expansion: Expansion = resolved(expand(self._arguments, multirun=True))
        self._launcher = make(self.expansion.launcher, self.expansion.folder)
        self._tried: set[Path] = set()
        self._again: Counter[Path] = Counter()
        self._held: list[Path] = []
        self._has_waited = False
        self._fine = {State.COMPLETED}

    @property
    def runs(self) -> list[Point]:
        """The feasible points, which are runs now or once their search is done."""
        return [point for point in self.expansion.points if point.infeasible is None]

    @property
    def searched(self) -> list[Point]:
        """The runs of searches that are known so far."""
        return [point for search in self.expansion.searches for point in search.points]

    @property
    def exit_code(self) -> int:
        """``DONE`` if every point reached a state that counts as success, else ``FAILED``."""
        return DONE if all(_state(point) in self._fine for point in self.expansion.points) else FAILED

    def announce(self) -> None:
        """Report notices, errors and the number of runs before anything is trained."""
        for notice in self.expansion.notices:
            self._report(f"note: {notice}")
        impossible = Counter(point.infeasible for point in self.expansion.points if point.infeasible is not None)
        for reason, count in impossible.items():
            self._report(f"error: {reason}" + (f" ({count} points)" if count > 1 else ""))
        known = [(p.config, p.architecture) for p in self.runs if p.config is not None and p.architecture is not None]
        warned = Counter(warning for config, sizes in known for warning in warnings(config, sizes))
        for warning, count in warned.items():
            self._report(f"note: {warning} ({count} of {len(known)} runs)")
        if self.runs:
            self._report(f"sweep {self.expansion.name}: {_counted(self.expansion.points)}")
            if self.searched:
                self._report(f"search for learning rates: {_counted(self.searched)}")

    def launched(self) -> bool:
        """Launch the unfinished runs that were not tried yet; returns whether there were any, since more may follow."""
        self._write_down()
        jobs: dict[Path, Status] = {}
        refused: list[UserError] = []
        self._held = []
        left = {p.run_dir: p for p in [*self.searched, *self.runs] if p.run_dir is not None and p.run is not None}
        left = {path: p for path, p in left.items() if path not in self._tried and not _state(p).is_over}
        queued = self._launcher.queued(list(left))
        watch(set(left) - set(queued), self._report, self._stop.check)
        progress = Progress("frozen", len(left), self._report)

        def taken(one: tuple[Path, Point]) -> tuple[Path, Status | UserError | None]:
            path, point = one
            try:
                return path, None if path in queued else _taken(path, point)
            except UserError as error:  # a broken directory does not stop the other runs
                return path, error

        try:
            for path, before in each(taken, left.items()):
                if before is None:
                    self._held.append(path)
                elif isinstance(before, UserError):
                    refused.append(before)
                    self._tried.add(path)
                else:
                    jobs[path] = before
                progress.step()
                self._stop.check()
            if refused and len(refused) == len(left):
                raise refused[0]
            for refusal, count in Counter(map(str, refused)).items():
                self._report(f"error: {refusal}" + (f" ({count} runs)" if count > 1 else ""))
            if not jobs and not queued:
                return False
            if not self._launcher.launch(list(jobs), self._stop, self._report):
                self._fine |= {State.QUEUED, State.RUNNING, State.WAITING}
        finally:
            if State.QUEUED not in self._fine:
                for path, before in jobs.items():
                    queue.take_back(path, before)
        self._tried |= {*jobs, *queued}
        self._try_again([*jobs, *queued])
        if any(search.is_open for search in self.expansion.searches):
            self.expansion = expand(self._arguments, multirun=True)
            self._write_down()
        return True

    def _try_again(self, launched: Sequence[Path]) -> None:
        """Allow runs that failed or were lost to be launched again, up to ``sweep.retries`` times each."""
        most = self.expansion.settings.retries
        failed = [path for path in launched if state_of(path) in (State.FAILED, State.LOST)]
        again = [path for path in failed if self._again[path] < most]
        self._again.update(again)
        self._tried -= set(again)
        if again:
            times = max(self._again[path] for path in again)
            self._report(f"{len(again)} runs failed or were lost: launched again ({times} of {most} times)")

    def waited(self) -> bool:
        """Wait once, up to ``PATIENCE`` seconds, for runs that others hold; returns whether one has become free."""
        if self._has_waited or not self._held:
            return False
        self._has_waited = True
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self._stop.check()
            if any(not queue.is_elsewhere(read_status(path)) for path in self._held):
                return True
            time.sleep(0.1)
        return False

    def _write_down(self) -> None:
        """Write ``sweep.json`` (command and runs) and ``search.json`` (results of searches) if they have changed."""
        folder, searches = self.expansion.folder, self.expansion.searches
        command = shlex.join(["mixersweep", "train", "-m", *self._arguments])
        runs = [point.run.name for point in self.runs if point.run is not None]
        searched = [point.run.name for point in self.searched if point.run is not None]
        content: dict[str, Any] = {"name": self.expansion.name, "experiment": self.expansion.experiment}
        content |= {"command": command, "directory": str(Path.cwd()), "runs": runs, "search_runs": searched}
        stored = {"sweep.json": content, **({"search.json": [each.record() for each in searches]} if searches else {})}
        before = {name: _stored(folder / name) for name in stored}
        changed = {name: value for name, value in stored.items() if before[name] != value}
        if not changed:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in changed.items():
                write_json(folder / name, value)
        except OSError as error:
            was = before["sweep.json"]
            if isinstance(was, dict) and {**before, "sweep.json": {**was, "directory": content["directory"]}} == stored:
                return  # an unchanged sweep may be in a read-only directory
            raise UserError(f"runs_dir={self.expansion.runs_dir}: cannot be written: {error.strerror}") from None

    def conclude(self) -> None:
        """Report how the runs ended, with the reason for those that did not complete."""
        if not self._tried and self.exit_code == DONE:
            return
        self._report(f"sweep {self.expansion.name}: {_counted(self.expansion.points)}")
        lines = map(self._line, self._one_a_run())
        for text in summed_up([line for line in lines if line is not None]):
            self._report(text)
        for waiting in dict.fromkeys(point.waiting for point in self.runs if point.waiting):
            self._report(f"waiting {waiting}")
        for search in self.expansion.searches:
            if search.lr is not None:
                self._report(f"search: {search.label}: learning rate {search.lr:g} ({search})")
        for text in results(
            path for path in sorted(self._tried) if state_of(path) not in (State.QUEUED, State.RUNNING)
        ):
            self._report(text)

    def _one_a_run(self) -> list[Point]:
        """Return all runs without duplicates, those of searches included."""
        return list({p.run_dir: p for p in [*self.searched, *self.runs] if p.run_dir is not None}.values())

    def _line(self, point: Point) -> tuple[str, str, str] | None:
        """Return state, model and width, and outcome of a run that did not complete; None if it needs no mention."""
        assert point.run is not None and point.run_dir is not None
        state = state_of(point.run_dir)
        if state in (State.COMPLETED, State.NEW) or (state is State.PLANNED and not error_of(point.run_dir)):
            return None
        return state, f"{point.run.config.model.name} of width {point.run.architecture.width}", outcome(point.run_dir)

    def show(self) -> None:
        """Send the sweep's results to W&B if that is enabled, runs were trained and none is left in a queue."""
        completed = [point for point in self.runs if point.config is not None and _state(point) is State.COMPLETED]
        if self._tried and completed and State.QUEUED not in self._fine:
            first, expansion = completed[0].config, self.expansion
            assert first is not None
            report_sweep(expansion.name, expansion.runs_dir, first.tracking, self._stop.check, self._report)


def _taken(path: Path, point: Point) -> Status | None:
    """Freeze a run's settings and mark it ``queued``; returns its earlier status, or None if it is over or taken."""
    if queue.is_elsewhere(read_status(path)):
        return None
    assert point.run is not None
    refuse(point.run.config)
    RunDirectory.create(point.run, path.parent).freeze()
    return queue.hand_over(path)


def _stored(path: Path) -> Any:
    """Read a JSON file; returns None if it is missing or cannot be read."""
    try:
        return read_json(path)
    except (OSError, UserError):
        return None


def _state(point: Point) -> State:
    if point.run_dir is not None:
        return state_of(point.run_dir)
    return State.WAITING if point.waiting is not None else State.INFEASIBLE


def _counted(points: Sequence[Point]) -> str:
    """Return the number of runs, and of runs in each state, in words."""
    states = Counter(_state(point) for point in points)
    return f"{len(points)} runs: " + ", ".join(f"{count} {state}" for state, count in states.most_common())
