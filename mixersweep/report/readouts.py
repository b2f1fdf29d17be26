"""What the heads of compared networks read: a difference between unequal readouts is no difference of structures.

The pooled head of a Mixer reads its channels, that of an MLP of the same width one mean for every ``patches`` units: a
narrow one may read too little to be trained at all. Heads of groups read as much in every network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mixersweep.report.recipe import Row


def readout_of(row: Row) -> tuple[str | None, int | None]:
    """The kind of head of a run, and how many features it reads."""
    return row.get("model.head"), row.get("readout_dimension")


def bars(joined: Iterable[tuple[Row, Row]]) -> list[str]:
    """What keeps a difference of two models from being claimed, of one run each from every width that is compared:
    their heads do not read alike. Empty where all do.
    """
    unlike = [(one, other) for one, other in joined if readout_of(one) != readout_of(other)]
    if not unlike:
        return []
    one, other = max(unlike, key=lambda pair: _ratio(*pair))
    read = [f"{row['readout_dimension'] or 'an unknown number'}" for row in (one, other)]
    return [f"their heads read different numbers of features ({read[0]} and {read[1]} at width {one['width']:,})"]


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


def _ratio(one: Row, other: Row) -> float:
    small, large = sorted(row.get("readout_dimension") or 0 for row in (one, other))
    return large / small if small else float("inf")


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
