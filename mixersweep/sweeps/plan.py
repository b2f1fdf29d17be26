"""Estimate what a sweep will cost before it trains anything; needs neither torch nor data (``mixersweep plan``).

It lists the runs that ``train -m`` would train: sizes as solved, states read from the run directories, memory by a
formula (``memory``) and time by what is known about runs of the same shape (``times``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mixersweep import processor
from mixersweep.budget import Architecture
from mixersweep.config import Config
from mixersweep.runs import Origin, Run, planned_record, solve
from mixersweep.runs.listing import Listed, read_listed
from mixersweep.runs.state import State
from mixersweep.sweeps.expand import Expansion
from mixersweep.sweeps.launchers import LAUNCHERS, Capacity, module_of
from mixersweep.sweeps.launchers.local import will_use_gpu
from mixersweep.sweeps.launchers.slurm_queue import with_slurm_jobs
from mixersweep.sweeps.memory import memory_bytes
from mixersweep.sweeps.packs import form_packs, may_pack, reason_single
from mixersweep.sweeps.point import Point
from mixersweep.sweeps.text import align, format_duration, format_quantity
from mixersweep.sweeps.times import Pace, Times

COLUMNS = (
    *("state", "model", "seed", "tokens", "channels", "width", "density", "fan-in", "connections", "parameters"),
    *("FLOPs", "memory", "time", "settings"),
)
DROPPABLE = ("settings", "fan-in", "density", "parameters", "FLOPs", "memory", "channels", "tokens", "connections")
COLUMN_SETTINGS = ("model", "seed", "tokens", "channels", "width", "connections", "density")
"""The settings that have a separate column."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    ``run`` is None if the point is infeasible; for a waiting point it has a preliminary learning rate. ``pace`` is None
    if the time of such runs is unknown. ``is_search`` marks a run of a search for learning rates.
    """

    point: Point
    run: Run | None
    state: State
    epochs_done: int
    pace: Pace | None
    is_search: bool = False

    @property
    def seconds(self) -> float | None:
        """The estimated seconds of training in all epochs, as in the run's record; its share if it trains in a pack."""
        if self.pace is None or self.run is None:
            return None
        return self.pace.training * self.run.config.epochs

    @property
    def wall_seconds(self) -> float | None:
        """The estimated seconds of the whole run, with set-up and evaluation; None if unknown."""
        return self._wall(epochs_done=0)

    @property
    def wall_seconds_left(self) -> float | None:
        """The estimated seconds that the run still needs: 0 if it is over or infeasible, None if unknown."""
        if self.state.is_over or self.state is State.INFEASIBLE:
            return 0.0
        return self._wall(self.epochs_done)

    def _wall(self, epochs_done: int) -> float | None:
        if self.pace is None or self.run is None:
            return None
        return self.pace.set_up + self.pace.epoch * (self.run.config.epochs - epochs_done)

    @property
    def record(self) -> dict[str, Any]:
        """The keys of ``result.json`` that are known before training, and the plan's estimates."""
        if self.run is None:
            return {"name": None, "state": self.state, "run_dir": None, "overrides": self.point.overrides} | {
                "reason": self.point.infeasible
            }
        values = planned_record(self.run)
        run_dir = None if self.point.run_dir is None else str(self.point.run_dir)
        if self.point.run is None:
            values |= {"name": None, "fingerprint": None}
        return {
            **values,
            "epochs": self.run.config.epochs,
            "state": self.state,
            "run_dir": run_dir,
            "epochs_done": self.epochs_done,
            "mean_fan_in": self.run.architecture.mean_fan_in,
            "memory_bytes": memory_bytes(self.run.config, self.run.architecture),
            "seconds_estimated": self.seconds,
            "wall_seconds_estimated": self.wall_seconds,
            "wall_seconds_left": self.wall_seconds_left,
            "estimated_from": self.pace and self.pace.source,
            "reason": self.point.waiting,
        }


@dataclass(frozen=True)
class PlannedPacks:
    """The packs that the launcher would form of the unfinished runs, and whether it trains them on GPUs."""

    packs: list[tuple[PlannedRun, ...]]
    on_gpu: bool

    def __str__(self) -> str:
        """Return the number and size of the packs, and why the other runs train by themselves."""
        shared = [pack for pack in self.packs if len(pack) > 1]
        single = [pack[0].run for pack in self.packs if len(pack) == 1]
        runs, largest = sum(map(len, shared)), max(map(len, shared), default=0)
        text = f"packs: {runs:,} runs in {len(shared):,} pack{'' if len(shared) == 1 else 's'} of up to {largest}"
        if not shared:
            text = "packs: none"
        reasons = Counter(
            reason_single(run.config, on_gpu=self.on_gpu) or "no other is of its program" for run in single if run
        )
        if not reasons:
            return text
        described = [reason if len(reasons) == 1 else f"{count:,}: {reason}" for reason, count in reasons.most_common()]
        how = "run trains by itself" if len(single) == 1 else "runs train by themselves"
        return f"{text}; {len(single):,} {how} ({'; '.join(described)})"


def plan(expansion: Expansion) -> list[PlannedRun]:
    """Plan every point of the expansion: those of searches first, then the others in job order."""
    searched = [point for search in expansion.searches for point in search.points]
    points = [*((point, True) for point in searched), *((point, False) for point in expansion.points)]
    runs = [_run_of(point) for point, _ in points]
    times = Times(expansion.runs_dir, [run for run in runs if run is not None])
    found = []
    read = [read_listed(point.run_dir) if point.run_dir is not None else None for point, _ in points]
    known = {listed.path: listed for listed in with_slurm_jobs(listed for listed in read if listed is not None)}
    for (point, is_search), run in zip(points, runs, strict=True):
        listed = known.get(point.run_dir) if point.run_dir is not None else None
        pace = None if run is None else times.pace(run)
        found.append(PlannedRun(point, run, _state_of(point, listed), _epochs_done(listed), pace, is_search))
    return found


def table(rows: Sequence[PlannedRun], width: int | None) -> list[str]:
    """Format the feasible runs as a table with a heading; columns that are empty for all runs are left out."""
    feasible = [row for row in rows if row.run is not None]
    varied = _varied_settings(feasible)
    cells = [COLUMNS, *(_cells_of(row, varied) for row in feasible)]
    keep = [i for i, name in enumerate(COLUMNS) if name in ("state", "model") or any(row[i] for row in cells[1:])]
    cells = [tuple(row[i] for i in keep) for row in cells]
    return align(cells, tuple(set(COLUMNS) - {"state", "model", "settings"}), width, DROPPABLE)


def totals(rows: Sequence[PlannedRun], at_once: int, packs: PlannedPacks | None = None) -> list[str]:
    """Summarise the plan in lines: runs by state, FLOPs and time left, the largest memory of a run, and the packs."""
    runs = [row for row in rows if row.run is not None]
    states = Counter(row.state for row in runs)
    by_state = ", ".join(
        f"{states[state]:,} {state}" for state in State if states[state] and state is not State.INFEASIBLE
    )
    infeasible = len(rows) - len(runs)
    lines = [
        f"{len(runs):,} run{'' if len(runs) == 1 else 's'}"
        + (f": {by_state}" if runs else "")
        + (f"; {infeasible:,} infeasible" if infeasible else "")
    ]
    left = _unfinished(rows)
    if not left:
        return lines
    flops = sum(_flops_left(row.run, row.epochs_done) for row in left if row.run)
    memory = max(memory_bytes(row.run.config, row.run.architecture) for row in left if row.run)
    lines.append(
        f"left to train: about {format_quantity(flops)}FLOP, at most {format_quantity(memory, 'B', 1024)} a run"
    )
    if packs is not None:
        lines.append(str(packs))
    return [*lines, *_describe_time_left(left, at_once, packs.packs if packs else [])]


def _describe_time_left(left: Sequence[PlannedRun], at_once: int, packs: Sequence[Sequence[PlannedRun]]) -> list[str]:
    """Describe the estimated time left. How much faster packs are is only known once a pack has completed."""
    lines = []
    known = [row.wall_seconds_left for row in left if row.wall_seconds_left is not None]
    unknown = len(left) - len(known)
    packed = [row for pack in packs if len(pack) > 1 for row in pack if row.pace is not None]
    if known:
        pack_seconds = [sum(row.wall_seconds_left or 0.0 for row in pack) for pack in packs] or known
        text = f"time left: {format_duration(sum(known))} "
        if packed and not all(row.pace and row.pace.is_pack_share for row in packed):
            text += "run by run, less in packs; how much less, the first that is completed tells"
        else:
            text += "in packs, one after another" if packed else "one after another"
            several = at_once > 1 and len(pack_seconds) > 1
            if several:
                text += f", {format_duration(parallel_seconds(pack_seconds, at_once))} with {at_once} at once"
        lines.append(text + (f", without the {unknown:,} of unknown time" if unknown else ""))
    if unknown:
        lines.append("plan --measure times what no completed run tells of")
    return lines


def parallel_seconds(seconds: Sequence[float], at_once: int) -> float:
    """Estimate the seconds of tasks with ``at_once`` in parallel: shared evenly, but no less than the longest."""
    return max(sum(seconds) / at_once, *seconds)


def plan_packs(expansion: Expansion, rows: Sequence[PlannedRun]) -> PlannedPacks | None:
    """Form the packs that the launcher would, as far as is known on this machine; None if it would form none.

    Runs that wait for a search are trained after it, and so are in separate packs.
    """
    left = _unfinished(rows)
    runs = [row.run for row in left if row.run is not None]
    capacity = _capacity(expansion, runs)
    pack = expansion.launcher.get("pack", 1)
    if capacity is None or not may_pack(runs, pack, on_gpu=capacity.on_gpu):
        return None
    packs: list[tuple[PlannedRun, ...]] = []
    for is_waiting in (False, True):
        runs_of_round = {i: run for i, run in enumerate(runs) if (left[i].point.waiting is not None) == is_waiting}
        numbers = form_packs(
            runs_of_round,
            pack,
            on_gpu=capacity.on_gpu,
            at_once=capacity.at_once,
            packs_per_gpu=capacity.packs_per_gpu,
        )
        packs += [tuple(left[i] for i in numbers_of_pack) for numbers_of_pack in numbers]
    return PlannedPacks(packs, capacity.on_gpu)


def _unfinished(rows: Sequence[PlannedRun]) -> list[PlannedRun]:
    return [row for row in rows if row.run is not None and not row.state.is_over]


def _capacity(expansion: Expansion, runs: Sequence[Run]) -> Capacity | None:
    """Return what the launcher has for these runs; None without runs, for a single run, or with Hydra's launchers."""
    launcher = expansion.launcher
    if not runs or not expansion.multirun or launcher["name"] not in LAUNCHERS:
        return None
    return module_of(launcher["name"]).capacity(launcher, runs[0].config, len(runs))


def concurrency(expansion: Expansion, rows: Sequence[PlannedRun]) -> tuple[int, int]:
    """Return how many unfinished runs train at once, and the CPU threads of each, as far as is known on this machine.

    Only the local launcher tells; otherwise it is one run with all cores, since a cluster's machines are unknown.
    """
    runs = [row.run for row in _unfinished(rows) if row.run is not None]
    capacity = _capacity(expansion, runs) or Capacity(on_gpu=False)
    threads = runs[0].config.threads if runs else "auto"
    return capacity.at_once, threads if isinstance(threads, int) else capacity.cores or len(processor.cores())


def slow_reasons(expansion: Expansion, rows: Sequence[PlannedRun]) -> list[str]:
    """Return the reasons why unfinished runs will be slow on this machine; a cluster's machines are unknown here."""
    name = expansion.launcher.get("name")
    if expansion.multirun and name != "local":
        return []
    gpus = expansion.launcher.get("gpus", "auto") if expansion.multirun else "auto"
    left = [row.run.config for row in _unfinished(rows) if row.run is not None]
    slow = {
        (reason, config.device): None
        for config in left
        if (reason := processor.slow_precision_warning(config.precision))
    }
    return list(dict.fromkeys(reason for reason, device in slow if not will_use_gpu(device, gpus)))


def _run_of(point: Point) -> Run | None:
    if point.run is not None or point.config is None:
        return point.run
    return solve(point.config, Origin(overrides=point.overrides))  # a waiting point lacks its learning rate only


def _state_of(point: Point, listed: Listed | None) -> State:
    if point.infeasible is not None:
        return State.INFEASIBLE
    if point.waiting is not None:
        return State.WAITING
    return State.NEW if listed is None else listed.state


def _epochs_done(listed: Listed | None) -> int:
    if listed is None:
        return 0
    if listed.result is not None:
        return int(listed.result["epochs"])
    return int(listed.row["epoch"]) if listed.row else 0


def _cells_of(row: PlannedRun, varied: set[str]) -> tuple[str, ...]:
    run = row.run
    assert run is not None
    a: Architecture = run.architecture
    others = " ".join(o for o in row.point.overrides if _setting_of(o) in varied)
    return (
        row.state,
        run.config.model.name,
        str(run.config.seed),
        "" if a.tokens is None else str(a.tokens),
        "" if a.channels is None else str(a.channels),
        str(a.width),
        f"{a.density:.3g}",
        f"{a.mean_fan_in:.3g}",
        f"{a.connections:,}" if isinstance(a.connections, int) else f"{a.connections:,.1f}",
        format_quantity(a.parameters),
        format_quantity(a.flops_per_image),
        format_quantity(memory_bytes(run.config, a), "B", 1024),
        "" if row.wall_seconds is None else format_duration(row.wall_seconds),
        f"search {others}".strip() if row.is_search else others,
    )


def _varied_settings(rows: Iterable[PlannedRun]) -> set[str]:
    """Return the settings that differ among the runs and have no separate column."""
    overrides_of: dict[str, set[str]] = {}
    for row in rows:
        for override in row.point.overrides:
            overrides_of.setdefault(_setting_of(override), set()).add(override)
    return {key for key, overrides in overrides_of.items() if len(overrides) > 1 and key not in COLUMN_SETTINGS}


def _setting_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _flops_left(run: Run, epochs_done: int) -> float:
    """Estimate the FLOPs left: three forward passes for each training image, one for each evaluated image."""
    config: Config = run.config
    images = config.data.train_images
    evaluated = config.validation * images + config.data.test_images
    images_per_epoch = 3 * (1 - config.validation) * images + evaluated
    return images_per_epoch * run.architecture.flops_per_image * (config.epochs - epochs_done)
