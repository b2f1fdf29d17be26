"""Whether the heads of compared networks read equally much; if not, a difference may be theirs, not the structure's.

The pooled head of a Mixer reads its channels; that of an MLP of the same width reads one mean for every ``patches``
units, which in a narrow MLP may be too few to train at all. For both the number changes with the width. A linear head
reads all units, and ``signed_groups`` the same number of features in every network. Families without a setting for the
head count it among their layers, so it is part of the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixersweep.budget.terms import DEFAULT_READOUT
from mixersweep.report.claims import Reason

Row = Mapping[str, Any]


class Readout(NamedTuple):
    """The head of a cell: its kind, the number of features it reads, and their rank at initialisation.

    Number and rank are None where they are unknown.
    """

    kind: str
    features: int | None
    rank: int | None

    def __str__(self) -> str:
        features = "an unknown number of features" if self.features is None else f"{self.features:,} features"
        return features if self.rank is None else f"{features} of rank {self.rank:,}"

    def differs(self, other: Readout) -> bool:
        """Whether kind, number or rank differ; ranks are compared where both were measured."""
        measured = None not in (self.rank, other.rank)
        return self[:2] != other[:2] or (measured and self.rank != other.rank)

    def ratio_to(self, other: Readout) -> float:
        """The larger over the smaller number of features, or of ranks, whichever ratio is larger."""
        numbers = [(own or 0, its or 0) for own, its in zip(self[1:], other[1:], strict=True)]
        return max(max(pair) / min(pair) if min(pair) else 0.0 for pair in numbers)


def readout_of(runs: Sequence[Row]) -> Readout | None:
    """The readout of a cell, with the highest rank of its runs; None where the head is a layer of the budget."""
    kind = runs[0].get("model.head")
    if kind is None:
        return None
    ranks = [rank for row in runs if (rank := row.get("readout_rank")) is not None]
    return Readout(kind, runs[0].get("readout_dimension"), max(ranks, default=None))


def reasons_to_bar_pair(joined: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> list[Reason]:
    """The reason not to claim a difference of two models whose readouts differ; none where they are equal.

    ``joined`` are the runs of both models at each width that is compared.
    """
    found = [(readout_of(one), readout_of(other), one[0]["width"]) for one, other in joined]
    unlike = [(a, b, width) for a, b, width in found if a is not None and b is not None and a.differs(b)]
    if not unlike:
        return []
    one, other, width = max(unlike, key=lambda each: each[0].ratio_to(each[1]))
    text = f": {one} against {other} at width {width:,} (train both with {_remedy(one)})"
    return [Reason("the readouts differ", text)]


def reasons_to_bar_trend(cells: Sequence[Sequence[Row]]) -> list[Reason]:
    """The reason not to claim a trend along which the readout changes; none where it does not.

    ``cells`` are the runs at each width.
    """
    found = [(readout, runs[0]["width"]) for runs in cells if (readout := readout_of(runs)) is not None]
    if not found:
        return []
    (first, narrowest), *others = found
    unlike = [(readout, width) for readout, width in others if first.differs(readout)]
    if not unlike:
        return []
    other, width = max(unlike, key=lambda each: first.ratio_to(each[0]))
    text = f": {first} at {narrowest:,} against {other} at {width:,} (train all with {_remedy(first)})"
    return [Reason("the readouts differ along the width", text)]


def _remedy(readout: Readout) -> str:
    """The setting that makes the readouts equal."""
    if readout.kind == "signed_groups":
        return "a smaller model.readout_dimension"
    return f"model.head=signed_groups, which reads {DEFAULT_READOUT} features of every network"


def readout_caveats(runs: Mapping[str, Sequence[Row]]) -> list[str]:
    """The caveat where heads read different numbers of features, else none; ``runs`` are those compared, by model."""
    read = {model: sorted({r for row in rows if (r := row.get("readout_dimension"))}) for model, rows in runs.items()}
    if len(set().union(*map(set, read.values()))) < 2:
        return []
    text = "; ".join(f"{model} {_span(own)}{_rank(runs[model])}" for model, own in read.items() if own)
    return [f"the heads read different numbers of features, which alone may explain a difference: {text}"]


def _rank(rows: Sequence[Row]) -> str:
    """The rank at initialisation of the runs that read the fewest features, where it is less than their number."""
    fewest = min((row for row in rows if row.get("readout_dimension")), key=lambda row: row["readout_dimension"])
    rank = fewest.get("readout_rank")
    return f" (of rank {rank} at initialisation)" if rank is not None and rank < fewest["readout_dimension"] else ""


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
