"""What the heads of compared networks read: a difference between unequal readouts is no difference of structures.

The pooled head of a Mixer reads its channels, that of an MLP of the same width one mean for every ``patches`` units: a
narrow one may read too little to be trained at all, and both read more or less as the width changes. A linear head
reads all units. Heads of groups read as much in every network. Families that have no setting for the head count it
among their layers, so that the budget holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixersweep.budget.terms import DEFAULT_READOUT
from mixersweep.report.claims import Reason

Row = Mapping[str, Any]


class Readout(NamedTuple):
    """The kind of head of a cell, how many features it reads, and their rank at the start, None where unknown."""

    kind: str
    features: int | None
    rank: int | None

    def __str__(self) -> str:
        features = "an unknown number" if self.features is None else f"{self.features:,}"
        return features if self.rank is None else f"{features} of rank {self.rank:,}"

    def differs(self, other: Readout) -> bool:
        """Whether the two read unlike features; ranks are compared where both were measured."""
        measured = None not in (self.rank, other.rank)
        return self[:2] != other[:2] or (measured and self.rank != other.rank)

    def apart(self, other: Readout) -> float:
        """How many times the one reads, of the largest of both numbers."""
        numbers = [(own or 0, its or 0) for own, its in zip(self[1:], other[1:], strict=True)]
        return max(max(pair) / min(pair) if min(pair) else 0.0 for pair in numbers)


def readout_of(runs: Sequence[Row]) -> Readout | None:
    """What the head reads in a cell, the highest rank of its runs; None where the head is a layer of the budget."""
    kind = runs[0].get("model.head")
    if kind is None:
        return None
    ranks = [rank for row in runs if (rank := row.get("readout_rank")) is not None]
    return Readout(kind, runs[0].get("readout_dimension"), max(ranks, default=None))


def bars_pair(joined: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> list[Reason]:
    """What keeps a difference of two models from being claimed, of their runs at every width that is compared."""
    found = [(readout_of(one), readout_of(other), one[0]["width"]) for one, other in joined]
    unlike = [(a, b, width) for a, b, width in found if a is not None and b is not None and a.differs(b)]
    if not unlike:
        return []
    one, other, width = max(unlike, key=lambda each: each[0].apart(each[1]))
    said = f": {one} against {other} at width {width:,} (train both with {_remedy(one)})"
    return [Reason("the readouts differ", said)]


def bars_trend(cells: Sequence[Sequence[Row]]) -> list[Reason]:
    """What keeps a trend from being claimed, of the runs of its widths: what the head reads changes with the width."""
    found = [(readout, runs[0]["width"]) for runs in cells if (readout := readout_of(runs)) is not None]
    if not found:
        return []
    (first, narrowest), *others = found
    unlike = [(readout, width) for readout, width in others if first.differs(readout)]
    if not unlike:
        return []
    other, width = max(unlike, key=lambda each: first.apart(each[0]))
    said = f": {first} at {narrowest:,} against {other} at {width:,} (train all with {_remedy(first)})"
    return [Reason("the readouts differ along the width", said)]


def _remedy(readout: Readout) -> str:
    """The setting that makes them alike."""
    if readout.kind == "signed_groups":
        return "a smaller model.readout_dimension"
    return f"model.head=signed_groups, which reads {DEFAULT_READOUT} of every network"


def told(runs: Mapping[str, Sequence[Row]]) -> list[str]:
    """The caveat where heads read unequal numbers of features; ``runs`` of each model are those that are compared."""
    read = {model: sorted({r for row in rows if (r := row.get("readout_dimension"))}) for model, rows in runs.items()}
    if len(set().union(*map(set, read.values()))) < 2:
        return []
    said = "; ".join(f"{model} {_span(own)}{_rank(runs[model])}" for model, own in read.items() if own)
    return [f"heads read unequal numbers of features, which may decide by itself: {said}"]


def _rank(rows: Sequence[Row]) -> str:
    """The rank at the start of the runs that read fewest features, where it is less than they are."""
    fewest = min((row for row in rows if row.get("readout_dimension")), key=lambda row: row["readout_dimension"])
    rank = fewest.get("readout_rank")
    return f" (of rank {rank} at the start)" if rank is not None and rank < fewest["readout_dimension"] else ""


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
