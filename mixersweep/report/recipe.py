"""Group runs into comparisons: which settings may differ inside one, and which must be equal.

A comparison holds fixed the data, the training recipe, the depth, the budget and the version of the numbers. Inside it
differ the model (with the settings that make one family's networks different: a *variant*), the width and shape, the
seed, and the learning rate, which may be chosen for each model and width. Every other setting must be equal, so a
setting that is added later splits comparisons rather than mixing unlike runs. A report can be asked to make further
settings part of a variant (``named_by``).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixersweep.budget.terms import TARGETS
from mixersweep.config.schema import Seeds
from mixersweep.errors import UserError
from mixersweep.families import order_of
from mixersweep.report.rates import Rates, rates_of
from mixersweep.report.sizes import target_of
from mixersweep.runs.state import State

Row = dict[str, Any]
Cell = tuple[str, int, str | None]
"""(variant, target width, shape): the runs that differ in nothing but their seed."""

SHAPE = (
    "width",
    "connections",
    "weights",
    "tokens",
    "channels",
    "density",
    "expansion",
    "branch",
    "match",
    "budget",
    "count",
    "flops",
)
"""Settings that determine sizes: runs are compared by their sizes, not by how these were asked for."""

SHARED = ("head", "readout_dimension", "activation", "norm_eps", "bias", "pretrained_sha256")
"""Settings that all families have: they must be equal in a comparison of families."""

FREE = ("seed", "optim.lr", *SHAPE)

PURPOSES = tuple(sorted(field.name for field in dataclasses.fields(Seeds)))
"""The purposes that can have a seed of their own."""

_SEEDS = tuple((name, f"seeds.{name}") for name in PURPOSES)


@dataclass(frozen=True)
class Comparison:
    """Completed runs that may be compared in one figure; ``fixed`` are the settings that all have in common.

    ``cells`` are the compared runs, in each cell those of one learning rate. ``searched`` are the completed runs at
    other learning rates and those of the search seeds, ``unfinished`` the runs without a result. ``variants`` are the
    settings behind each label. ``rates`` says how each cell's learning rate was found; ``search_epochs`` are the
    training lengths of searches that were shorter or longer than the compared runs. ``differs`` are the settings that
    differ from the largest comparison: (own value, the other's).
    """

    fixed: dict[str, Any]
    cells: dict[Cell, list[Row]]
    searched: list[Row]
    unfinished: list[Row]
    variants: dict[str, dict[str, Any]]
    search_seeds: list[str]
    rates: dict[Cell, Rates]
    search_epochs: list[int] = field(default_factory=list)
    differs: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The compared runs, in a fixed order."""
        return [row for runs in self.cells.values() for row in runs]

    @property
    def budget(self) -> str:
        """``connections`` or ``parameters``."""
        return "parameters" if self.target in ("weights_target", "weights_real_target") else "connections"

    @property
    def target(self) -> str:
        """The column of the size that the budget fixed."""
        return next(name for name in TARGETS if name in self.fixed)

    @property
    def held(self) -> str:
        """The fixed budget in words: ``16,384 connections a layer``."""
        return f"{self.fixed[self.target]:,} {HELD[self.target]}"

    def cell_of(self, row: Row) -> Cell:
        """The cell of a run of this comparison, whatever its learning rate."""
        own = variant_of(row)
        label = next((label for label, variant in self.variants.items() if variant == own), "")
        return label, row["width_target"], row["shape"]

    @property
    def learning_rates(self) -> dict[Cell, float]:
        """The compared learning rate of each cell."""
        return {cell: runs[0]["optim.lr"] for cell, runs in self.cells.items()}

    @property
    def name(self) -> str:
        """The data set, budget and depth, in words."""
        held = self.held.replace("trainable ", "")
        depth = f", depth {self.fixed['depth']}" if "depth" in self.fixed else ""
        return f"{self.fixed.get('data.name')}, {held}{depth}"


def comparisons(completed: Iterable[Row], others: Iterable[Row] = ()) -> list[Comparison]:
    """Group completed runs into comparisons, that with the most compared runs first; ``others`` have no result."""
    completed = list(completed)
    groups: dict[str, list[Row]] = defaultdict(list)
    unfinished: dict[str, list[Row]] = defaultdict(list)
    fixed: dict[str, dict[str, Any]] = {}
    for row in completed:
        held = fixed_of(row)
        fixed[_key(held)] = held
        groups[_key(held)].append(row)
    by_target: dict[tuple[str, Any], list[dict[str, Any]]] = defaultdict(list)
    for held in fixed.values():
        (target,) = [name for name in TARGETS if name in held]
        by_target[target, held[target]].append(held)
    for row in completed:
        for key in _also_meets(row, by_target):
            groups[key].append(row)
    for row in others:
        if row["settings"]:
            unfinished[_key(fixed_of(row))].append(row)
    made = [_comparison(fixed[key], runs, unfinished[key]) for key, runs in sorted(groups.items())]
    made.sort(key=lambda one: (-len(one.rows), -len(one.variants)))
    return [
        dataclasses.replace(one, differs=difference(one.fixed, made[0].fixed), search_epochs=_searched_for(one, made))
        for one in made
    ]


def _searched_for(one: Comparison, made: Sequence[Comparison]) -> list[int]:
    """The training lengths, in epochs, of rate searches in comparisons that differ from this one in nothing else."""
    return sorted(
        other.fixed["epochs"]
        for other in made
        if any(rates.is_searched for rates in other.rates.values())
        and set(difference(one.fixed, other.fixed)) == {"epochs"}
    )


def named_by(rows: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """Make these settings part of the variant of each row, rather than settings that must be equal or part of the seed.

    Raises ``UserError`` for a setting that no run has, and for one that always, or never, differs in a comparison.
    """
    rows = list(rows)
    known = {name for row in rows for name in row["settings"]}
    for name in names:
        if name in known and not (name == "seed" or name in SHAPE or name.startswith("data.")):
            continue
        if name in known or name in SHAPE:
            why = "the runs of one line differ in it"
            if name.startswith("data."):
                why = "accuracies on different data are not compared"
            raise UserError(f"--by {name}: cannot separate lines, {why}; give a setting such as seeds.structure")
        near = difflib.get_close_matches(name, sorted(known), 1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"--by {name}: no run has such a setting{nearest}")

    def named(row: Row) -> Row:
        settings = {name: value for name, value in row["settings"].items() if name not in names}
        return {**row, "settings": settings, "named_by": {name: row["settings"].get(name) for name in names}}

    return [named(row) if row["settings"] else row for row in rows] if names else rows


def fixed_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that must be equal in a comparison."""
    target = target_of(row)
    held = {name: value for name, value in row["settings"].items() if name not in FREE}
    held = {name: value for name, value in held.items() if not name.startswith(("model.", "seeds."))}
    shared = {f"model.{name}": row["settings"].get(f"model.{name}") for name in SHARED}
    versions = {"schema_version": row["schema_version"], "numbers_version": row["numbers_version"]}
    return {**held, **shared, **versions, target: row[target]}


HELD = {
    "flops_target": "FLOPs an image",
    "weights_real_target": "trainable mixing weights a layer with first layer and skip",
    "connections_real_target": "connections a layer with first layer and skip",
    "weights_target": "trainable mixing weights a layer",
    "connections_target": "connections a layer",
}
"""The size that each budget fixes, in words."""


def _also_meets(row: Row, by_target: Mapping[tuple[str, Any], Sequence[Mapping[str, Any]]]) -> list[str]:
    """The keys of comparisons under other budgets whose target a run meets exactly.

    The same network is the same run under both budgets: it is trained once, and its record names only the budget it
    was first asked for with.
    """
    own = fixed_of(row)
    alike = {name: value for name, value in own.items() if name not in TARGETS}
    return [
        _key(held)
        for target, size in TARGETS.items()
        for held in by_target.get((target, row[size]), ())
        if target not in own and {n: v for n, v in held.items() if n not in TARGETS} == alike
    ]


def variant_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The variant of a run: its model, expansion and further model settings that make networks of a family differ."""
    settings = {name.partition(".")[2]: value for name, value in row["settings"].items() if name.startswith("model.")}
    own = {name: value for name, value in settings.items() if name not in (*SHARED, "name")}
    return {"model": row["model"], "expansion": row["expansion"], **own, **row.get("named_by", {})}


def replicate_of(row: Mapping[str, Any]) -> str:
    """The seed of a run as text, with the seeds of single purposes where they were set: ``0 structure=7``."""
    settings = row["settings"]
    own = [(name, settings.get(setting)) for name, setting in _SEEDS]
    return str(row["seed"]) + "".join([f" {name}={value}" for name, value in own if value is not None])


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two comparisons differ, with both values."""
    names = dict.fromkeys([*one, *other])
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _comparison(fixed: dict[str, Any], rows: Sequence[Row], unfinished: Sequence[Row]) -> Comparison:
    rows = sorted(rows, key=lambda row: (row["seed"], row["name"]))
    labels = _labels(rows)
    variants = {labels[_key(variant_of(row))]: variant_of(row) for row in rows}
    tried: dict[Cell, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        tried[_cell_of(row, labels)][row["optim.lr"]].append(row)
    diverged: dict[Cell, list[Row]] = defaultdict(list)
    for row in unfinished:
        if row["state"] == State.DIVERGED:
            diverged[_cell_of(row, labels)].append(row)
    chose = _search_seeds(tried, diverged)
    rank = {label: order_of(variant["model"]) for label, variant in variants.items()}
    cells, searched, rates = {}, [], {}
    for cell in sorted(tried, key=lambda cell: (rank[cell[0]], cell[0], cell[1], str(cell[2]))):
        reported = {rate: [r for r in runs if replicate_of(r) not in chose] for rate, runs in tried[cell].items()}
        chosen = chosen_rate(tried[cell], reported)
        compared = reported[chosen] or tried[cell][chosen]
        cells[cell] = compared
        rates[cell] = rates_of(tried[cell], diverged[cell], chosen, reported, chose, replicate_of)
        kept = set(map(id, compared))
        searched += [row for runs in tried[cell].values() for row in runs if id(row) not in kept]
    order = sorted(variants, key=lambda label: (rank[label], label))
    ordered = {label: variants[label] for label in order}
    return Comparison(fixed, cells, searched, list(unfinished), ordered, sorted(chose), rates)


def _cell_of(row: Row, labels: Mapping[str, str]) -> Cell:
    return labels.get(_key(variant_of(row)), ""), row["width_target"], row["shape"]


def _search_seeds(
    tried: Mapping[Cell, Mapping[float, Sequence[Row]]], diverged: Mapping[Cell, Sequence[Row]]
) -> set[str]:
    """The seeds that served to choose learning rates: those with several rates in every cell they occur in.

    There are none where all seeds are like that.
    """
    at: dict[str, list[int]] = defaultdict(list)
    for cell, rates in tried.items():
        counts = Counter(replicate_of(row) for runs in (*rates.values(), diverged.get(cell, ())) for row in runs)
        for seed, count in counts.items():
            at[seed].append(count)
    chose = {seed for seed, counts in at.items() if min(counts) > 1}
    return chose if set(at) - chose else set()


def chosen_rate(tried: Mapping[float, Sequence[Row]], reported: Mapping[float, Sequence[Row]]) -> float:
    """The learning rate that is compared: that with the most seeds, then that best on validation, never on test.

    ``reported`` are the runs of ``tried`` without the search seeds.
    """

    def merit(rate: float) -> tuple[int, int, float, float]:
        validation = [row["validation_accuracy"] for row in tried[rate] if row["validation_accuracy"] is not None]
        return len(reported[rate]), len(tried[rate]), sum(validation) / max(1, len(validation)), -rate

    return max(tried, key=merit)


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """The label of each variant: the model, with the settings in which its variants differ."""
    by_model: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        variant = variant_of(row)
        by_model[row["model"]][_key(variant)] = variant
    labels = {}
    for model, variants in by_model.items():
        names = dict.fromkeys(name for variant in variants.values() for name in variant)
        varied = [n for n in names if len(Counter(_key(variant.get(n)) for variant in variants.values())) > 1]
        for key, variant in variants.items():
            labels[key] = " ".join([model, *(f"{n}={_shown(variant.get(n))}" for n in varied)])
    return labels


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (bool, list)) or value is None else str(value)
