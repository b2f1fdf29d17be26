"""Estimate what a sweep will cost before it trains anything; needs neither torch nor data (``mixersweep plan``).

It lists the runs that ``train -m`` would train: sizes as solved, states read from the run directories, memory by a
formula (``memory``) and time by what is known about runs of the same shape (``times``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixersweep import processor
from mixersweep.budget import Architecture
from mixersweep.config import Config, settings
from mixersweep.runs import Origin, Run, planned_record, solve
from mixersweep.runs.listing import Listed, read_listed
from mixersweep.runs.state import State
from mixersweep.sweeps.expand import Expansion
from mixersweep.sweeps.launchers import LAUNCHERS, local, ray, slurm
from mixersweep.sweeps.launchers.slurm_queue import told
from mixersweep.sweeps.memory import memory_bytes
from mixersweep.sweeps.packs import formed, may_pack, why_single
from mixersweep.sweeps.point import Point
from mixersweep.sweeps.text import aligned, duration, quantity
from mixersweep.sweeps.times import Pace, Times

COLUMNS = (
    *("state", "model", "seed", "tokens", "channels", "width", "density", "fan-in", "connections", "parameters"),
    *("FLOPs", "memory", "time", "settings"),
)
DROPPED = ("settings", "fan-in", "density", "parameters", "FLOPs", "memory", "channels", "tokens", "connections")
IN_COLUMNS = ("model", "seed", "tokens", "channels", "width", "connections", "density")
"""The settings that have a separate column."""


@dataclass(frozen=True)
class Planned:
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
        known = planned_record(self.run)
        run_dir = None if self.point.run_dir is None else str(self.point.run_dir)
        if self.point.run is None:
            known |= {"name": None, "fingerprint": None}
        return {
            **known,
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
class Packs:
    """The packs that the launcher would form of the unfinished runs, and whether it trains them on GPUs."""

    made: list[tuple[Planned, ...]]
    on_gpu: bool

    def __str__(self) -> str:
        """Return the number and size of the packs, and why the other runs train by themselves."""
        several = [pack for pack in self.made if len(pack) > 1]
        single = [pack[0].run for pack in self.made if len(pack) == 1]
        runs, most = sum(map(len, several)), max(map(len, several), default=0)
        text = f"packs: {runs:,} runs in {len(several):,} pack{'' if len(several) == 1 else 's'} of up to {most}"
        if not several:
            text = "packs: none"
        reasons = Counter(
            why_single(run.config, on_gpu=self.on_gpu) or "no other is of its program" for run in single if run
        )
        if not reasons:
            return text
        whys = [reason if len(reasons) == 1 else f"{count:,}: {reason}" for reason, count in reasons.most_common()]
        how = "run trains by itself" if len(single) == 1 else "runs train by themselves"
        return f"{text}; {len(single):,} {how} ({'; '.join(whys)})"


def plan(expansion: Expansion) -> list[Planned]:
    """Plan every point of the expansion: those of searches first, then the others in job order."""
    searched = [point for search in expansion.searches for point in search.points]
    points = [*((point, True) for point in searched), *((point, False) for point in expansion.points)]
    runs = [_run(point) for point, _ in points]
    times = Times(expansion.runs_dir, [run for run in runs if run is not None])
    found = []
    read = [read_listed(point.run_dir) if point.run_dir is not None else None for point, _ in points]
    known = {listed.path: listed for listed in told(listed for listed in read if listed is not None)}
    for (point, is_search), run in zip(points, runs, strict=True):
        listed = known.get(point.run_dir) if point.run_dir is not None else None
        pace = None if run is None else times.pace(run)
        found.append(Planned(point, run, _state(point, listed), _epochs_done(listed), pace, is_search))
    return found


def table(rows: Sequence[Planned], wide: int | None) -> list[str]:
    """Format the feasible runs as a table with a heading; columns that are empty for all runs are left out."""
    feasible = [row for row in rows if row.run is not None]
    varied = _varied(feasible)
    cells = [COLUMNS, *(_cells(row, varied) for row in feasible)]
    keep = [i for i, name in enumerate(COLUMNS) if name in ("state", "model") or any(row[i] for row in cells[1:])]
    cells = [tuple(row[i] for i in keep) for row in cells]
    return aligned(cells, tuple(set(COLUMNS) - {"state", "model", "settings"}), wide, DROPPED)


def totals(rows: Sequence[Planned], at_once: int, packs: Packs | None = None) -> list[str]:
    """Summarise the plan in lines: runs by state, FLOPs and time left, the largest memory of a run, and the packs."""
    runs = [row for row in rows if row.run is not None]
    states = Counter(row.state for row in runs)
    by_state = ", ".join(
        f"{states[state]:,} {state}" for state in State if states[state] and state is not State.INFEASIBLE
    )
    impossible = len(rows) - len(runs)
    lines = [
        f"{len(runs):,} run{'' if len(runs) == 1 else 's'}"
        + (f": {by_state}" if runs else "")
        + (f"; {impossible:,} infeasible" if impossible else "")
    ]
    left = [row for row in runs if not row.state.is_over]
    if not left:
        return lines
    flops = sum(_flops(row.run, row.epochs_done) for row in left if row.run)
    memory = max(memory_bytes(row.run.config, row.run.architecture) for row in left if row.run)
    lines.append(f"left to train: about {quantity(flops)}FLOP, at most {quantity(memory, 'B', 1024)} a run")
    if packs is not None:
        lines.append(str(packs))
    return [*lines, *_time_left(left, at_once, packs.made if packs else [])]


def _time_left(left: Sequence[Planned], at_once: int, packs: Sequence[Sequence[Planned]]) -> list[str]:
    """Describe the estimated time left. How much faster packs are is only known once a pack has completed."""
    lines = []
    known = [row.wall_seconds_left for row in left if row.wall_seconds_left is not None]
    unknown = len(left) - len(known)
    packed = [row for pack in packs if len(pack) > 1 for row in pack if row.pace is not None]
    if known:
        of_each = [sum(row.wall_seconds_left or 0.0 for row in pack) for pack in packs] or known
        text = f"time left: {duration(sum(known))} "
        if packed and not all(row.pace and row.pace.is_share for row in packed):
            text += "run by run, less in packs; how much less, the first that is completed tells"
        else:
            text += "in packs, one after another" if packed else "one after another"
            several = at_once > 1 and len(of_each) > 1
            text += f", {duration(together(of_each, at_once))} with {at_once} at once" if several else ""
        lines.append(text + (f", without the {unknown:,} of unknown time" if unknown else ""))
    if unknown:
        lines.append("plan --measure times what no completed run tells of")
    return lines


def together(seconds: Sequence[float], at_once: int) -> float:
    """Estimate the seconds of tasks with ``at_once`` in parallel: shared evenly, but no less than the longest."""
    return max(sum(seconds) / at_once, *seconds)


def packs(expansion: Expansion, rows: Sequence[Planned]) -> Packs | None:
    """Form the packs that the launcher would, as far as is known on this machine; None if it would form none.

    Runs that wait for a search are trained after it, and so are in separate packs.
    """
    left = [row for row in rows if row.run is not None and not row.state.is_over]
    runs = [row.run for row in left if row.run is not None]
    launcher = expansion.launcher
    if not runs or not expansion.multirun or launcher["name"] not in LAUNCHERS:
        return None
    on_gpu, places, sharing = _places(launcher, runs[0].config, len(runs))
    if not may_pack(runs, launcher["pack"], on_gpu=on_gpu):
        return None
    made: list[tuple[Planned, ...]] = []
    for waits in (False, True):
        of_round = {i: run for i, run in enumerate(runs) if (left[i].point.waiting is not None) == waits}
        numbers = formed(of_round, launcher["pack"], on_gpu=on_gpu, places=places, sharing=sharing)
        made += [tuple(left[i] for i in pack) for pack in numbers]
    return Packs(made, on_gpu)


def _places(launcher: Mapping[str, Any], config: Config, jobs: int) -> tuple[bool, int, int]:
    """Return whether a launcher uses GPUs, the packs it trains at once (1 on a cluster), and the packs a GPU."""
    if launcher["name"] == "slurm":
        of_slurm = settings(slurm.SlurmSettings, launcher, "hydra.launcher.")
        return (gpus := of_slurm.gpus_of_a_job(config.device)) > 0, 1, of_slurm.sharing(gpus)
    if launcher["name"] == "ray":
        of_ray = settings(ray.RaySettings, launcher, "hydra.launcher.")
        asked = of_ray.gpus_per_run
        if asked == "auto":  # a GPU of this machine, if any; those of a cluster are unknown here
            return local.gives_gpu(config.device, "auto" if of_ray.address is None else 0), 1, 1
        return asked > 0, 1, ray.sharing(asked)
    of_local = settings(local.LocalSettings, launcher, "hydra.launcher.")
    places = local.slots(of_local, config, jobs)
    return bool(places[0].environment), len(places), of_local.runs_per_gpu


def at_once(expansion: Expansion, rows: Sequence[Planned]) -> tuple[int, int]:
    """Return how many unfinished runs train at once, and the CPU threads of each, as far as is known on this machine.

    Only the local launcher tells; otherwise it is one run with all cores, since a cluster's machines are unknown.
    """
    runs = [row.run for row in rows if row.run is not None and not row.state.is_over]
    if runs and expansion.multirun and expansion.launcher.get("name") == "local":
        places = local.slots(
            settings(local.LocalSettings, expansion.launcher, "hydra.launcher."), runs[0].config, len(runs)
        )
        cores, jobs = len(places[0].cores), len(places)
    else:
        cores = len(processor.cores())
        jobs = 1
    asked = runs[0].config.threads if runs else "auto"
    return jobs, asked if isinstance(asked, int) else cores


def slow_here(expansion: Expansion, rows: Sequence[Planned]) -> list[str]:
    """Return the reasons why unfinished runs will be slow on this machine; a cluster's machines are unknown here."""
    name = expansion.launcher.get("name")
    if expansion.multirun and name != "local":
        return []
    gpus = expansion.launcher.get("gpus", "auto") if expansion.multirun else "auto"
    left = [row.run.config for row in rows if row.run is not None and not row.state.is_over]
    slow = {
        (reason, config.device): None
        for config in left
        if (reason := processor.slow_precision_warning(config.precision))
    }
    return list(dict.fromkeys(reason for reason, device in slow if not local.gives_gpu(device, gpus)))


def _run(point: Point) -> Run | None:
    if point.run is not None or point.config is None:
        return point.run
    return solve(point.config, Origin(overrides=point.overrides))  # a waiting point lacks its learning rate only


def _state(point: Point, listed: Listed | None) -> State:
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


def _cells(row: Planned, varied: set[str]) -> tuple[str, ...]:
    run = row.run
    assert run is not None
    a: Architecture = run.architecture
    others = " ".join(o for o in row.point.overrides if _key(o) in varied)
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
        quantity(a.parameters),
        quantity(a.flops_per_image),
        quantity(memory_bytes(run.config, a), "B", 1024),
        "" if row.wall_seconds is None else duration(row.wall_seconds),
        f"search {others}".strip() if row.is_search else others,
    )


def _varied(rows: Iterable[Planned]) -> set[str]:
    """Return the settings that differ among the runs and have no separate column."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for override in row.point.overrides:
            values.setdefault(_key(override), set()).add(override)
    return {key for key, seen in values.items() if len(seen) > 1 and key not in IN_COLUMNS}


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _flops(run: Run, epochs_done: int) -> float:
    """Estimate the FLOPs left: three forward passes for each training image, one for each evaluated image."""
    config: Config = run.config
    images = config.data.train_images
    evaluated = config.validation * images + config.data.test_images
    an_epoch = 3 * (1 - config.validation) * images + evaluated
    return an_epoch * run.architecture.flops_per_image * (config.epochs - epochs_done)
