"""Expand overrides into the runs that they mean, with their sizes solved: for ``plan`` and ``train -m`` alike.

A sweep is a union of grids, since a dense MLP has a single width and an SW-MLP can have sizes that no Mixer has. An
experiment file lists the grids under ``sweep.grids``; ``sweep.over`` and the command line are crossed with each. A
value on the command line replaces those of a grid, or of ``over``, for the same setting; if it chooses another family
or optimiser than a grid, the grid's settings that the new choice does not have are dropped. Without an experiment the
command line is the only grid, in the order of Hydra's own sweeper. Runs with the same fingerprint count once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from mixersweep.compose import (
    OWN_SWEEPER,
    Composer,
    check_overrides,
    config_dir_arguments,
    is_choice,
    parse_override,
    parse_overrides,
    split_config_dir,
)
from mixersweep.config import VARIANTS, Sweep, architecture, owners, parse_sweep
from mixersweep.errors import Infeasible, UserError
from mixersweep.paths import expand_home, sweeps_dir
from mixersweep.runs import Origin, solve
from mixersweep.runs.experiment import EXECUTION
from mixersweep.sweeps.launchers import check_launcher
from mixersweep.sweeps.point import Point, with_settings
from mixersweep.sweeps.search import Search, searches_of

Grid = dict[str, list[str]]
"""The overrides of each setting, by its key; a grid stands for all their combinations."""

LONGEST_NAME = 200
"""The most bytes in a sweep's name: file systems allow 255, and temporary files beside it need a longer name."""

ATTEMPTS = 4
"""How many times ``infeasible=nearest`` applies the changes that an error suggests; one may require another."""


@dataclass(frozen=True)
class Expansion:
    """The meaning of a command: its points in job order, without duplicates, and the settings of the sweep.

    Waiting points wait for ``searches``; ``launcher`` is the mapping under ``hydra.launcher``, with its ``name``.
    """

    name: str
    experiment: str | None
    points: list[Point]
    searches: list[Search]
    notices: list[str]
    settings: Sweep
    multirun: bool
    launcher: dict[str, Any]
    runs_dir: Path

    @property
    def folder(self) -> Path:
        """The directory for the sweep's files that belong to no single run."""
        return sweeps_dir(self.runs_dir) / self.name


def expand_one(arguments: Sequence[str], *, multirun: bool | None = None) -> Expansion:
    """Expand the overrides of a single run.

    Raises ``UserError`` if they mean several runs, and ``Infeasible`` if no network meets the settings.
    """
    expansion = expand(arguments, multirun=multirun)
    several = next((o for o in parse_overrides(split_config_dir(arguments)[1]) if o.is_sweep_override()), None)
    if several is not None:
        raise UserError(f"{several.input_line}: several values; mixersweep.sweep takes them, for many runs")
    if expansion.multirun:
        launcher = f"hydra/launcher={expansion.launcher['name']}"
        what = f"experiment={expansion.experiment}" if expansion.experiment else launcher
        raise UserError(f"{what}: means many runs; mixersweep.sweep takes it")
    if not expansion.points:
        raise Infeasible("; ".join(expansion.notices))
    (point,) = expansion.points
    if point.infeasible is not None:
        raise Infeasible(point.infeasible)
    return expansion


def expand(arguments: Sequence[str], *, multirun: bool | None = None) -> Expansion:
    """Expand the arguments of ``mixersweep train [-m]``; reads results of search runs, and neither writes nor trains.

    The arguments are overrides, optionally after a ``--config-dir=DIR``. ``multirun`` says whether they mean many runs;
    None leaves it to them (an experiment means many). Raises ``UserError`` for an invalid setting; a point whose
    settings no network meets is marked ``infeasible`` instead.
    """
    own_configs, overrides = split_config_dir(arguments)
    check_overrides(overrides, own_configs)
    task = [o for o in parse_overrides(overrides) if not _is_sweep_setting(o.key_or_group)]
    composer = Composer(overrides, own_configs)
    head = composer.shared
    multirun = composer.is_multirun if multirun is None else multirun
    choices = head.hydra.runtime.choices
    launcher = {"name": choices["hydra/launcher"], **_to_dict(head.hydra.launcher)}
    if multirun and choices["hydra/sweeper"] == OWN_SWEEPER:
        check_launcher(launcher["name"])
    settings = parse_sweep(_to_dict(head.sweep))
    experiment = choices.get("experiment")
    grids = _grids(settings, task, own_configs) if multirun else [grid_of(task)]
    _check_single_valued(grids)
    name = _check_name(settings.name) or experiment or _name_sweep(grids)
    origin = Origin(experiment, name if multirun else None, config_dir_arguments(own_configs))
    solver = _Solver(composer, settings, grids, origin)
    # the last setting fastest, as in Hydra
    combinations = [product(*grid.values()) for grid in grids] if multirun else [product(*map(_split_values, task))]
    points = solver.solve_points(list(one) for some in combinations for one in some)
    searches: list[Search] = []
    if multirun and settings.search is not None:
        searches = searches_of(points, settings.search, solver.solve_search_run)
        points = [solver.apply_search(point, searches) for point in points]
    return Expansion(
        name=name,
        experiment=experiment,
        points=points,
        searches=searches,
        notices=[*solver.notices(), *(note for search in searches for note in search.notices)],
        settings=settings,
        multirun=multirun,
        launcher=launcher,
        runs_dir=solver.runs_dir(points),
    )


class _Solver:
    """Solves the points of all grids and collects notices about them; ``origin`` is common to all runs."""

    def __init__(self, composer: Composer, settings: Sweep, grids: list[Grid], origin: Origin) -> None:
        self._composer, self._settings, self._grids, self._origin = composer, settings, grids, origin
        self._sizes_vary = any(_varies(grids, key) for key in ("model", "width", "density"))
        self._dense: dict[str, list[str]] = {}
        self._skipped: dict[str, int] = {}
        self._nearest: dict[str, None] = {}
        self._duplicates = 0

    def solve_points(self, combinations: Iterable[list[str]]) -> list[Point]:
        """Solve each combination of overrides; returns the points without duplicates."""
        found: dict[str, Point] = {}
        for combination in combinations:
            point, is_adjusted = self._solve_or_adjust(self._drop_inapplicable(combination))
            if point.infeasible is not None and self._settings.infeasible == "skip":
                self._skipped[point.infeasible] = self._skipped.get(point.infeasible, 0) + 1
                continue
            key = point.run.fingerprint if point.run else json.dumps(point.overrides)
            self._duplicates += key in found and not is_adjusted
            found.setdefault(key, point)
        return list(found.values())

    def solve_search_run(self, overrides: list[str]) -> Point:
        """Solve a run of a search; the name of its sweep ends in ``/search``."""
        return self._solve(overrides, dataclasses.replace(self._origin, sweep=f"{self._origin.sweep}/search"))

    def apply_search(self, point: Point, searches: list[Search]) -> Point:
        """Return the point with the learning rate that its search chose, or marked as waiting for it."""
        search = next((search for search in searches if search.is_for(point)), None)
        if search is None:
            return point
        if search.failed is not None:
            return dataclasses.replace(point, run=None, infeasible=search.failed)
        if search.lr is None:
            return dataclasses.replace(point, run=None, waiting=search.waiting)
        return self._solve(with_settings(point.overrides, optim__lr=search.lr), self._origin)

    def runs_dir(self, points: list[Point]) -> Path:
        """Return the directory that contains the run directories of the sweep."""
        known = next((point.config.runs_dir for point in points if point.config is not None), None)
        if known is None:
            shared = [grid[key][0] for grid in self._grids[:1] for key in ("experiment", "runs_dir") if key in grid]
            known = str(self._composer.values(shared)["runs_dir"])
        return expand_home(known, "runs_dir").absolute()

    def notices(self) -> list[str]:
        """Describe the points that were left out or changed, one line for each reason."""
        lines = []
        for network, sizes in self._dense.items():
            distinct = list(dict.fromkeys(sizes))
            listed = ", ".join(distinct[:4]) + (f" and {len(distinct) - 4} others" if len(distinct) > 4 else "")
            lines.append(f"{network}; it takes part once, not at {listed}")
        lines += [f"left out: {reason}{_count_suffix(count)}" for reason, count in self._skipped.items()]
        lines += list(self._nearest)
        if self._duplicates:
            lines.append(f"duplicates left out: {self._duplicates}")
        return lines

    def _drop_inapplicable(self, overrides: list[str]) -> list[str]:
        """Drop a grid's settings that the family or optimiser chosen on the command line does not have."""
        groups = {override.group for override in overrides if isinstance(override, _OptionalOverride)}
        if not groups:
            return overrides
        chosen = self._composer.values([o for o in overrides if is_choice(parse_override(o))])
        names = {group: chosen[group]["name"] for group in groups}
        return [
            override
            for override in overrides
            if not isinstance(override, _OptionalOverride)
            or names[override.group] in owners(parse_override(override).key_or_group)
        ]

    def _solve_or_adjust(self, overrides: list[str]) -> tuple[Point, bool]:
        """Solve a point; returns it, and whether its settings were changed to ones that work."""
        try:
            return self._solve(overrides, self._origin), False
        except Infeasible as error:
            problem, adjusted = error, overrides
        if self._sizes_vary and self._is_dense(overrides):
            sizes = [o for o in overrides if parse_override(o).key_or_group in ("width", "density")]
            adjusted = with_settings(overrides, **{parse_override(o).key_or_group: "auto" for o in sizes})
            point = self._solve(adjusted, self._origin)
            if point.architecture is not None:
                network = f"mlp: dense, of the one width {point.architecture.width}"
                self._dense.setdefault(network, []).extend(sizes)
            return point, True
        for _ in range(ATTEMPTS if self._settings.infeasible == "nearest" else 0):
            if not problem.nearest:
                break
            adjusted = with_settings(adjusted, **problem.nearest)
            try:
                point = self._solve(adjusted, self._origin)
            except Infeasible as error:
                problem = error
                continue
            adopted = ", ".join(f"{key}={value}" for key, value in problem.nearest.items())
            self._nearest[f"{problem}: took {adopted}"] = None
            return point, True
        return Point(overrides, infeasible=str(problem)), False

    def _is_dense(self, overrides: list[str]) -> bool:
        try:
            return self._composer.config(overrides).model.structure == "dense"
        except Infeasible:  # the image settings are infeasible
            return False

    def _solve(self, overrides: list[str], origin: Origin) -> Point:
        """Compose and solve one point; raises ``Infeasible`` if no network meets the settings."""
        config = self._composer.config(overrides)
        try:
            sizes = architecture(config)
        except Infeasible:
            raise
        except UserError as error:
            raise Infeasible(str(error)) from error
        run = solve(config, dataclasses.replace(origin, overrides=[*origin.overrides, *overrides]))
        return Point(overrides, config, sizes, run)


def _grids(settings: Sweep, task: list[Override], own_configs: Path | None) -> list[Grid]:
    """Return the experiment's grids, each crossed with ``over`` and the command line, whose values take precedence."""
    command, over = grid_of(task), _grid_of_mapping(settings.over, "sweep.over", own_configs)
    experiment = {key: command.pop(key) for key in list(command) if key == "experiment"}
    grids = [_grid_of_mapping(grid, f"sweep.grids[{i}]", own_configs) for i, grid in enumerate(settings.grids)] or [{}]
    crossed = []
    for grid in grids:
        merged = {**grid, **{key: values for key, values in over.items() if key not in grid}}
        for group in VARIANTS.keys() & merged.keys() & command.keys():
            for key in merged:
                if key.startswith(f"{group}."):
                    merged[key] = [_OptionalOverride(value) for value in merged[key]]
        crossed.append({**experiment, **merged, **command})
    return crossed if settings.grids or settings.over else [grid_of(task)]


class _OptionalOverride(str):
    """A grid's override in a group (``model``, ``optim``) for which the command line makes a choice of its own."""

    @property
    def group(self) -> str:
        return parse_override(self).key_or_group.partition(".")[0]


def grid_of(task: Sequence[Override]) -> Grid:
    """Turn overrides into a grid, with one entry a value; its product is in the order of Hydra's own sweeper."""
    return {_key_of(override): _split_values(override) for override in task}


def _grid_of_mapping(values: Mapping[str, object], where: str, own_configs: Path | None) -> Grid:
    """Turn a mapping of an experiment file into a grid; raises ``UserError`` for a setting that no run has."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    overrides = [f"{key}={text}" for key, text in texts.items()]
    try:
        check_overrides(overrides, own_configs)
        parsed = parse_overrides(overrides)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for override in parsed:
        if override.key_or_group == "experiment" or _is_sweep_setting(override.key_or_group):
            raise UserError(f"{where}: {override.input_line}: a grid sweeps over the settings of runs only")
    return {_key_of(override): _split_values(override) for override in parsed}


def _split_values(override: Override) -> list[str]:
    """Split an override by its values, as Hydra's own sweeper spells them; raises ``UserError`` for intervals."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: an interval has no values to sweep over; hydra/sweeper=optuna draws some"
            " (pip install 'mixersweep[optuna]')"
        )
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _key_of(override: Override) -> str:
    return override.key_or_group + (f"@{override.package}" if override.package else "")


def _is_sweep_setting(key: str) -> bool:
    return key in ("sweep", "hydra") or key.startswith(("sweep.", "hydra.", "hydra/"))


def _check_single_valued(grids: list[Grid]) -> None:
    for key in ("runs_dir", "run_dir", "experiment"):
        values = [value for grid in grids for value in grid.get(key, [])]
        if len(set(values)) > 1:
            raise UserError(f"{key}: a sweep has one {key}, not {', '.join(dict.fromkeys(values))}")


def _varies(grids: list[Grid], key: str) -> bool:
    return len({value for grid in grids for value in grid.get(key, [""])}) > 1


def _name_sweep(grids: list[Grid]) -> str:
    """Name a sweep by the settings that it varies, and a hash of everything that determines its runs."""
    kept = [{k: v for k, v in grid.items() if k.partition(".")[0] not in EXECUTION} for grid in grids]
    keys = dict.fromkeys(key.rpartition(".")[2] for grid in kept for key, values in grid.items() if len(values) > 1)
    content = [{key: sorted(values) for key, values in grid.items()} for grid in kept]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    return "-".join([*list(keys)[:4], digest])


def _check_name(name: str | None) -> str | None:
    """Check the name of a sweep, which also names its folder; raises ``UserError`` if it is too long or a path."""
    if name is not None and len(name.encode()) > LONGEST_NAME:
        raise UserError(f"sweep.name={name[:20]}...: is of {len(name.encode())} bytes; at most {LONGEST_NAME}")
    if name and (name.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", name)):
        nearest = re.sub(r"[/\\\x00-\x1f\x7f]+", "-", name).strip(".-") or "mine"
        raise UserError(
            f"sweep.name={name!r}: names one folder in runs_dir, so no / and no . at its start; "
            f"the nearest is {nearest}"
        )
    return name


def _to_dict(node: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _count_suffix(count: int) -> str:
    return f" ({count} points)" if count > 1 else ""
