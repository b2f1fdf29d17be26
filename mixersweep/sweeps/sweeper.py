"""Execute a sweep: freeze the settings of its runs, hand the unfinished ones to a launcher, and report the results.

Everything is read from and written to run directories, so the same command continues what an earlier one left, even
if that was killed; if nothing is left it launches nothing. Runs that another process trains or has queued are left
alone.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixersweep.config import warnings
from mixersweep.errors import DONE, FAILED, USER_MISTAKE, UserError
from mixersweep.runs import RunDirectory, Status, read_status
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.listing import Listed, read_listed
from mixersweep.runs.state import State
from mixersweep.runs.status import observe_heartbeats
from mixersweep.sweeps import queue
from mixersweep.sweeps.cluster import resolve_auto
from mixersweep.sweeps.expand import Expansion, expand
from mixersweep.sweeps.launchers import StopRequest, module_of
from mixersweep.sweeps.launchers.slurm_queue import with_slurm_jobs
from mixersweep.sweeps.many import MOST_LINES, Progress, map_parallel, summarise
from mixersweep.sweeps.outcome import error_of, outcome_line, state_of
from mixersweep.sweeps.point import Point
from mixersweep.tracking import report_sweep
from mixersweep.tracking.job import describe_mirroring, describe_page, page_file, wait_for_results
from mixersweep.training.refusal import refuse

HELD_SECONDS = 5.0
"""Seconds to wait for runs that others hold: if their launching process has died, they are about to stop."""

Report = Callable[[str], None]


def sweep(arguments: Sequence[str], stop: StopRequest, report: Report, on_completed: Callable[[Path], None]) -> int:
    """Execute ``train -m ARGUMENTS`` and return its exit code: 0 if every run is completed.

    ``on_completed`` is called with the path of each completed run's ``result.json``, in job order. Raises
    ``RunStopped`` after a signal, once everything has stopped, and ``UserError`` for invalid settings.
    """
    active = _ActiveSweep(arguments, stop, report)
    active.report_start()
    if not active.runs:
        report("error: this sweep has no run that can be")
        return USER_MISTAKE
    try:
        while active.launch() or active.wait_for_held():
            pass
        active.wait_for_mirrors()
    finally:
        for point in active.runs:
            if _state_of(point) is State.COMPLETED and point.run_dir is not None:
                on_completed(point.run_dir / "result.json")
        active.report_end()
    active.send_results()
    return active.exit_code


class _PageWatch:
    """A request to stop whose check also reports the page of the sweep at W&B, once, when a mirror has written it."""

    def __init__(self, stop: StopRequest, page: Path, report: Report) -> None:
        self._stop, self._page, self._report = stop, page, report
        self._earlier = self._written()
        self.has_reported = False

    def check(self) -> None:
        """Raise ``RunStopped`` if a signal has arrived."""
        self._stop.check()
        if not self.has_reported and self._written() not in (None, self._earlier):
            self.has_reported = True
            self._report(describe_page(self._page.read_text()))

    def _written(self) -> int | None:
        """Return when the page was written, None if never."""
        try:
            return self._page.stat().st_mtime_ns
        except OSError:
            return None


class _ActiveSweep:
    """A sweep in progress; ``expansion`` is updated as searches choose learning rates."""

    def __init__(self, arguments: Sequence[str], stop: StopRequest, report: Report) -> None:
        self._arguments, self._report = list(arguments), report
        self.expansion: Expansion = resolve_auto(expand(self._arguments, multirun=True))
        self._stop = _PageWatch(stop, page_file(self.expansion.folder), report)
        settings = self.expansion.launcher
        self._launcher = module_of(settings["name"]).launcher(settings, self.expansion.folder)
        self._launched: set[Path] = set()
        self._retries: Counter[Path] = Counter()
        self._held: list[Path] = []
        self._has_waited = False
        self._successful = {State.COMPLETED}

    @property
    def runs(self) -> list[Point]:
        """The feasible points, which are runs now or once their search is done."""
        return [point for point in self.expansion.points if point.infeasible is None]

    @property
    def search_points(self) -> list[Point]:
        """The runs of searches that are known so far."""
        return [point for search in self.expansion.searches for point in search.points]

    @property
    def exit_code(self) -> int:
        """``DONE`` if every point reached a state that counts as success, else ``FAILED``."""
        return DONE if all(_state_of(point) in self._successful for point in self.expansion.points) else FAILED

    def report_start(self) -> None:
        """Report notices, errors and the number of runs before anything is trained."""
        for notice in self.expansion.notices:
            self._report(f"note: {notice}")
        infeasible = Counter(point.infeasible for point in self.expansion.points if point.infeasible is not None)
        for reason, count in infeasible.items():
            self._report(f"error: {reason}" + (f" ({count} points)" if count > 1 else ""))
        known = [(p.config, p.architecture) for p in self.runs if p.config is not None and p.architecture is not None]
        warned = Counter(warning for config, sizes in known for warning in warnings(config, sizes))
        for warning, count in warned.items():
            self._report(f"note: {warning} ({count} of {len(known)} runs)")
        if self.runs:
            queued = [point.run_dir for point in self.runs if point.run_dir and _state_of(point) is State.QUEUED]
            current = {run.path: run.state for run in _list_with_jobs(queued)}
            self._report(f"sweep {self.expansion.name}: {_count_states(self.expansion.points, current)}")
            if self.search_points:
                self._report(f"search for learning rates: {_count_states(self.search_points)}")

    def launch(self) -> bool:
        """Launch the unfinished runs that were not tried yet; returns whether there were any, since more may follow."""
        self._write_records()
        jobs: dict[Path, Status] = {}
        refused: list[UserError] = []
        self._held = []
        left = {p.run_dir: p for p in [*self.search_points, *self.runs] if p.run_dir is not None and p.run is not None}
        left = {path: p for path, p in left.items() if path not in self._launched and not _state_of(p).is_over}
        queued = self._launcher.queued(list(left))
        observe_heartbeats(set(left) - set(queued), self._report, self._stop.check)
        progress = Progress("frozen", len(left), self._report)

        def claim(item: tuple[Path, Point]) -> tuple[Path, Status | UserError | None]:
            path, point = item
            try:
                return path, None if path in queued else _freeze_and_claim(path, point)
            except UserError as error:  # a broken directory does not stop the other runs
                return path, error

        try:
            for path, earlier in map_parallel(claim, left.items()):
                if earlier is None:
                    self._held.append(path)
                elif isinstance(earlier, UserError):
                    refused.append(earlier)
                    self._launched.add(path)
                else:
                    jobs[path] = earlier
                progress.step()
                self._stop.check()
            if refused and len(refused) == len(left):
                raise refused[0]
            for refusal, count in Counter(map(str, refused)).items():
                self._report(f"error: {refusal}" + (f" ({count} runs)" if count > 1 else ""))
            if not jobs and not queued:
                return False
            if not self._launcher.launch(list(jobs), self._stop, self._report):
                self._successful |= {State.QUEUED, State.RUNNING, State.WAITING}
        finally:
            if State.QUEUED not in self._successful:
                for path, earlier in jobs.items():
                    queue.restore(path, earlier)
        self._launched |= {*jobs, *queued}
        self._allow_retries([*jobs, *queued])
        if any(search.is_open for search in self.expansion.searches):
            self.expansion = expand(self._arguments, multirun=True)
            self._write_records()
        return True

    def _allow_retries(self, launched: Sequence[Path]) -> None:
        """Allow runs that failed or were lost to be launched again, up to ``sweep.retries`` times each."""
        limit = self.expansion.settings.retries
        failed = [path for path in launched if state_of(path) in (State.FAILED, State.LOST)]
        retried = [path for path in failed if self._retries[path] < limit]
        self._retries.update(retried)
        self._launched -= set(retried)
        if retried:
            times = max(self._retries[path] for path in retried)
            self._report(f"{len(retried)} runs failed or were lost: launched again ({times} of {limit} times)")

    def wait_for_held(self) -> bool:
        """Wait once, up to ``HELD_SECONDS`` seconds, for runs that others hold; returns whether one has become free."""
        if self._has_waited or not self._held:
            return False
        self._has_waited = True
        deadline = time.monotonic() + HELD_SECONDS
        while time.monotonic() < deadline:
            self._stop.check()
            if any(not queue.is_held_elsewhere(read_status(path)) for path in self._held):
                return True
            time.sleep(0.1)
        return False

    def wait_for_mirrors(self) -> None:
        """Wait for what the runs that have ended still have to send to W&B, at most ``tracking.timeout`` seconds."""
        timeouts = [point.config.tracking.timeout for point in self.runs if point.config is not None]
        wait_for_results(self._settled(), max(timeouts, default=0.0), self._stop.check)

    def _write_records(self) -> None:
        """Write ``sweep.json`` (command and runs) and ``search.json`` (results of searches) if they have changed."""
        folder, searches = self.expansion.folder, self.expansion.searches
        command = shlex.join(["mixersweep", "train", "-m", *self._arguments])
        runs = [point.run.name for point in self.runs if point.run is not None]
        search_runs = [point.run.name for point in self.search_points if point.run is not None]
        content: dict[str, Any] = {"name": self.expansion.name, "experiment": self.expansion.experiment}
        content |= {"command": command, "directory": str(Path.cwd()), "runs": runs, "search_runs": search_runs}
        records: dict[str, Any] = {"sweep.json": content}
        if searches:
            records["search.json"] = [search.record() for search in searches]
        earlier = {name: _read_or_none(folder / name) for name in records}
        changed = {name: value for name, value in records.items() if earlier[name] != value}
        if not changed:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in changed.items():
                write_json(folder / name, value)
        except OSError as error:
            was = earlier["sweep.json"]
            moved = {**was, "directory": content["directory"]} if isinstance(was, dict) else None
            if {**earlier, "sweep.json": moved} == records:
                return  # an unchanged sweep may be in a read-only directory
            raise UserError(f"runs_dir={self.expansion.runs_dir}: cannot be written: {error.strerror}") from None

    def report_end(self) -> None:
        """Report how the runs ended, with the reason for those that did not complete."""
        if not self._launched and self.exit_code == DONE:
            return
        self._report(f"sweep {self.expansion.name}: {_count_states(self.expansion.points)}")
        lines = {path: line for path, line in map(_outcome_of, self._distinct_points()) if line is not None}
        steps = _next_steps(list(lines)) if len(lines) <= MOST_LINES else {}
        told = [(state, kind, text + steps.get(path, "")) for path, (state, kind, text) in lines.items()]
        for text in summarise(told):
            self._report(text)
        for reason in dict.fromkeys(point.waiting for point in self.runs if point.waiting):
            self._report(f"waiting {reason}")
        for search in self.expansion.searches:
            if search.lr is not None:
                self._report(f"search: {search.label}: learning rate {search.lr:g} ({search})")
        for text in describe_mirroring(self._settled(), with_page=not self._stop.has_reported):
            self._report(text)

    def _settled(self) -> list[Path]:
        """Return the launched runs that no process trains any more."""
        return [path for path in sorted(self._launched) if state_of(path) not in (State.QUEUED, State.RUNNING)]

    def _distinct_points(self) -> list[Point]:
        """Return all runs without duplicates, those of searches included."""
        return list({p.run_dir: p for p in [*self.search_points, *self.runs] if p.run_dir is not None}.values())

    def send_results(self) -> None:
        """Send the sweep's results to W&B if that is enabled, runs were trained and none is left in a queue."""
        completed = [point for point in self.runs if point.config is not None and _state_of(point) is State.COMPLETED]
        if self._launched and completed and State.QUEUED not in self._successful:
            first, expansion = completed[0].config, self.expansion
            assert first is not None
            report_sweep(expansion.name, expansion.runs_dir, first.tracking, self._stop.check, self._report)


def _outcome_of(point: Point) -> tuple[Path, tuple[str, str, str] | None]:
    """Return a run's directory, and its state, model and width, and outcome, None if it needs no mention."""
    assert point.run is not None and point.run_dir is not None
    state = state_of(point.run_dir)
    if state in (State.COMPLETED, State.NEW) or (state is State.PLANNED and not error_of(point.run_dir)):
        return point.run_dir, None
    kind = f"{point.run.config.model.name} of width {point.run.architecture.width}"
    return point.run_dir, (state, kind, outcome_line(point.run_dir))


def _next_steps(run_dirs: Sequence[Path]) -> dict[Path, str]:
    """Return what follows for runs that stopped, or what there is to do, as ``status`` says it, in brackets."""
    return {run.path: f"  ({run.next})" for run in _list_with_jobs(run_dirs) if run.next}


def _list_with_jobs(run_dirs: Sequence[Path]) -> Iterator[Listed]:
    """Yield the runs as ``status`` shows them, those with jobs of Slurm as Slurm knows them."""
    return with_slurm_jobs(run for path in run_dirs if (run := read_listed(path)) is not None)


def _freeze_and_claim(path: Path, point: Point) -> Status | None:
    """Freeze a run's settings and mark it ``queued``; returns its earlier status, or None if it is over or taken."""
    if queue.is_held_elsewhere(read_status(path)):
        return None
    assert point.run is not None
    refuse(point.run.config)
    RunDirectory.create(point.run, path.parent).freeze()
    return queue.claim(path)


def _read_or_none(path: Path) -> Any:
    """Read a JSON file; returns None if it is missing or cannot be read."""
    try:
        return read_json(path)
    except (OSError, UserError):
        return None


def _state_of(point: Point, current: Mapping[Path, State] | None = None) -> State:
    if point.run_dir is not None:
        return (current or {}).get(point.run_dir) or state_of(point.run_dir)
    return State.WAITING if point.waiting is not None else State.INFEASIBLE


def _count_states(points: Sequence[Point], current: Mapping[Path, State] | None = None) -> str:
    """Return the number of runs, and of runs in each state, in words; states in ``current`` go before stored ones."""
    states = Counter(_state_of(point, current) for point in points)
    return f"{len(points)} runs: " + ", ".join(f"{count} {state}" for state, count in states.most_common())
