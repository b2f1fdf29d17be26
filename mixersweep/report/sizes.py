"""In what sizes compared networks differ: connections really there, mixing weights, FLOPs and what the head reads.

A budget makes one of them equal, up to integers, and not the others: a reader of a difference has to know them all.
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
"""What networks that are compared should have alike, in words, and its column."""

BEYOND = 0.05
"""The relative difference from which on a size is told of."""


def target_of(row: Row) -> str:
    """The column of what the budget of a run fixed."""
    return next((name for name in TARGETS if row.get(name) is not None), "connections_target")


def residual(row: Row) -> float:
    """The larger relative distance of width and budget from their targets."""
    target = target_of(row)
    return float(max(abs(row["width"] / row["width_target"] - 1), abs(row[TARGETS[target]] / row[target] - 1)))


def apart(one: Row, other: Row) -> dict[str, float]:
    """By how much the larger of two networks exceeds the smaller in each of ``COMPARED``, the largest first.

    What is not known of either is left out.
    """
    found = {}
    for name, column in COMPARED.items():
        small, large = sorted((one.get(column) or 0, other.get(column) or 0))
        if small:
            found[name] = large / small - 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def largest(joined: Sequence[tuple[Row, Row]]) -> dict[str, float]:
    """The same over pairs of networks: of each size the largest difference, the largest first."""
    found: dict[str, float] = {}
    for one, other in joined:
        for name, share in apart(one, other).items():
            found[name] = max(found.get(name, 0.0), share)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def along(rows: Sequence[Row]) -> dict[str, float]:
    """The same over the networks of one model along its widths: what changes beside the width."""
    found = largest(list(itertools.combinations(rows, 2)))
    return {name: share for name, share in found.items() if name != "width"}


def beyond(found: Mapping[str, float]) -> str:
    """``mixing weights 18.5 times, FLOPs 12%``: the sizes that differ by more than 5%; empty where none does."""
    return ", ".join(f"{name} {_times(share)}" for name, share in found.items() if share > BEYOND)


def told(first: str, second: str, joined: Sequence[tuple[Row, Row]]) -> list[str]:
    """The line of a pair of models that differ in a size by more than 5% at equal target width; else none."""
    said = beyond(largest(joined))
    return [f"{first} and {second} differ at equal target width by up to: {said}"] if said else []


def _times(share: float) -> str:
    """``12%``, or ``15 times`` from twice as much on."""
    return f"{share:.0%}" if share < 1 else f"{share + 1:.3g} times"
