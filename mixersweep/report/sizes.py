"""How compared networks differ in size: width, connections really there, mixing weights, FLOPs, features of the head.

A budget makes one of these equal, up to rounding to integers, and leaves the others free; so reports name those that
differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mixersweep.budget.terms import TARGETS

Row = Mapping[str, Any]

COMPARED = {
    "width": "width",
    "connections really there": "connections_real",
    "mixing weights": "mixing_parameters",
    "FLOPs": "flops_per_image",
    "features that the head reads": "readout_dimension",
}
"""The sizes that compared networks should have in common: name and column."""

BEYOND = 0.05
"""The relative difference above which a report names a size."""


def target_of(row: Row) -> str:
    """The column of the size that the budget of a run fixed."""
    return next((name for name in TARGETS if row.get(name) is not None), "connections_target")


def residual(row: Row) -> float:
    """The relative deviation from target of a network's width or budget, whichever is larger."""
    target = target_of(row)
    return float(max(abs(row["width"] / row["width_target"] - 1), abs(row[TARGETS[target]] / row[target] - 1)))


def relative_differences(one: Row, other: Row) -> dict[str, float]:
    """The relative difference of two networks in each size of ``COMPARED``, the largest first: larger / smaller - 1.

    A size that either of them lacks is left out.
    """
    found = {}
    for name, column in COMPARED.items():
        small, large = sorted((one.get(column) or 0, other.get(column) or 0))
        if small:
            found[name] = large / small - 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def largest_differences(joined: Sequence[tuple[Row, Row]]) -> dict[str, float]:
    """The largest relative difference in each size over pairs of networks, the largest first."""
    found: dict[str, float] = {}
    for one, other in joined:
        for name, difference in relative_differences(one, other).items():
            found[name] = max(found.get(name, 0.0), difference)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def differences_along(rows: Sequence[Row]) -> dict[str, float]:
    """The largest relative difference in each size but the width, over the networks of one model along its widths."""
    found = largest_differences(list(itertools.combinations(rows, 2)))
    return {name: difference for name, difference in found.items() if name != "width"}


def describe_large(found: Mapping[str, float]) -> str:
    """``mixing weights 18.5 times, FLOPs 12%``: the sizes that differ by more than 5%; empty where none does."""
    return ", ".join(f"{name} {_times(difference)}" for name, difference in found.items() if difference > BEYOND)


def size_caveats(first: str, second: str, joined: Sequence[tuple[Row, Row]]) -> list[str]:
    """The caveat for two models that differ in a size by more than 5% at equal target width; else none."""
    text = describe_large(largest_differences(joined))
    return [f"{first} and {second} differ in size at equal target width, by up to: {text}"] if text else []


def _times(difference: float) -> str:
    """``12%``, or ``15 times`` from a factor of two on."""
    return f"{difference:.0%}" if difference < 1 else f"{difference + 1:.3g} times"
