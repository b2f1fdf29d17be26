"""The caveats of a comparison, a sentence each, and the points of its figures, which they are read from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixersweep.report import readouts, sizes
from mixersweep.report.bootstrap import Estimate
from mixersweep.report.recipe import Cell, Comparison, Row
from mixersweep.runs.state import State

FAN_IN = 4.0
"""The mean fan-in below which a sparse network takes part in no claim."""

UNCOUNTED = 0.25
"""The ratio of the parameters outside the budget (stem, head, skip) to the mixing weights above which it is named."""

FEWEST_RANKED, SAME_ORDER = 5, -0.8
"""The fewest points, and the rank correlation of training loss and test accuracy, at which a caveat names it."""


@dataclass(frozen=True)
class CellStatistics:
    """One point of the figures: the runs of a model at one width and shape, and their mean test accuracy.

    ``spread`` is the standard deviation over seeds, None for one seed. ``is_claimable`` is False below the mean fan-in
    at which claims begin; ``is_rank_limited`` is True where a pooled head has fewer channels than classes.
    """

    cell: Cell
    rows: list[Row]
    accuracy: Estimate
    spread: float | None
    is_claimable: bool
    is_rank_limited: bool

    @cached_property
    def mean(self) -> Row:
        """The mean of every numeric column over the seeds."""
        names = [n for n, v in self.rows[0].items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
        columns = {name: [row[name] for row in self.rows if row.get(name) is not None] for name in names}
        return {name: float(np.mean(values)) for name, values in columns.items() if values}


def is_degenerate(row: Row) -> bool:
    """Whether the mean fan-in is below ``FAN_IN``, so that nothing is claimed."""
    fan_in = row.get("mean_fan_in")
    return fan_in is not None and fan_in < FAN_IN


def is_rank_limited(row: Row) -> bool:
    """Whether a pooled head has fewer channels than there are classes."""
    channels = head_channels(row)
    return row.get("model.head") == "pool" and channels is not None and channels < (row.get("data.classes") or 0)


def head_channels(row: Row) -> int | None:
    """The number of channels that a pooled head reads."""
    return row.get("embedding_channels") or row.get("channels")


def caveats(comparison: Comparison, cells: Sequence[CellStatistics]) -> list[str]:
    """The caveats of a comparison, a sentence each."""
    found = []
    for variant in comparison.variants:
        own = [cell for cell in cells if cell.cell[0] == variant]
        shares = [cell.rows[0]["uncounted_share"] or 0.0 for cell in own]
        heavy = [share for share in shares if share > UNCOUNTED]
        if heavy:
            spread = f"{min(heavy):.2g}" if min(heavy) == max(heavy) else f"{min(heavy):.2g} to {max(heavy):.2g}"
            found.append(
                f"{variant}: at {len(heavy)} of {len(own)} widths the parameters outside the budget (stem, head, skip) "
                f"are {spread} times the mixing weights, more than a quarter"
            )
        limited = [cell for cell in own if cell.is_rank_limited]
        if limited:
            found.append(
                f"{variant}: fewer {'' if limited[0].cell[2] else 'embedding '}channels than the "
                f"{limited[0].rows[0]['data.classes']} classes at "
                f"{_widths(limited)}: the pooled head is rank-limited, so lower accuracy there is no effect of width"
            )
        thin = [cell for cell in own if not cell.is_claimable]
        if thin:
            found.append(f"{variant}: mean fan-in below 4 at {_widths(thin)}: shown, but in no test or trend")
    found += readouts.readout_caveats(
        {variant: [row for c in cells if c.cell[0] == variant for row in c.rows] for variant in comparison.variants}
    )
    for first, second in itertools.combinations(comparison.variants, 2):
        found += sizes.size_caveats(first, second, _joined(cells, first, second))
    layers = {
        variant: {c.rows[0]["mixing_layers"] for c in cells if c.cell[0] == variant} for variant in comparison.variants
    }
    counts = set().union(*layers.values()) if layers else set()
    if len(counts) > 1:
        text = ", ".join(f"{variant} {'/'.join(map(str, sorted(own)))}" for variant, own in layers.items())
        found.append(
            f"the models differ in their number of mixing layers ({text}), so equal connections per layer "
            "are unequal totals"
        )
    rates = {
        variant: sorted({rate for cell, rate in comparison.learning_rates.items() if cell[0] == variant})
        for variant in comparison.variants
    }
    if len({rate for own in rates.values() for rate in own}) > 1:
        text = "; ".join(f"{variant} {', '.join(f'{rate:g}' for rate in own)}" for variant, own in rates.items())
        found.append(f"learning rates differ between the compared runs: {text}")
    found += loss_order_caveats(cells)
    if comparison.search_seeds:
        seeds = ", ".join(comparison.search_seeds)
        found.append(f"seeds {seeds} served to choose learning rates and are in no comparison")
    gone = (State.FAILED, State.DIVERGED, State.LOST, State.BROKEN)
    lost = [row for row in comparison.unfinished if row["state"] in gone]
    if lost:
        text = "1 run of this comparison has" if len(lost) == 1 else f"{len(lost)} runs of this comparison have"
        found.append(f"{text} failed, diverged or been lost: the means are over the completed ones")
    return found


def loss_order_caveats(cells: Sequence[CellStatistics]) -> list[str]:
    """The caveat where points of lower training loss have higher test accuracy; else none."""
    order = loss_order(cells)
    if order is None or order >= SAME_ORDER:
        return []
    return [
        f"of the {len(cells)} points, those of lower training loss have higher test accuracy (rank correlation "
        f"−{-order:.2f}): better training alone may explain the differences"
    ]


def _joined(cells: Sequence[CellStatistics], first: str, second: str) -> list[tuple[Row, Row]]:
    """One run of each model at every target width and shape that two models share (an MLP has no shape)."""
    return [
        (one.rows[0], other.rows[0])
        for one, other in itertools.product(cells, cells)
        if (one.cell[0], other.cell[0]) == (first, second) and one.cell[1] == other.cell[1]
        if one.cell[2] == other.cell[2] or None in (one.cell[2], other.cell[2])
    ]


def loss_order(cells: Sequence[CellStatistics]) -> float | None:
    """Spearman's correlation of mean training loss and mean test accuracy over points.

    None for fewer than ``FEWEST_RANKED`` points or where all values are equal.
    """
    losses, accuracies = ([cell.mean.get(name, np.nan) for cell in cells] for name in ("train_loss", "test_accuracy"))
    if len(cells) < FEWEST_RANKED or len(set(losses)) == 1 or len(set(accuracies)) == 1:
        return None
    from scipy.stats import spearmanr

    found = float(spearmanr(losses, accuracies, nan_policy="omit").statistic)
    return found if np.isfinite(found) else None


def _widths(cells: Sequence[CellStatistics]) -> str:
    """``width 126 (wide), 153 and 204``."""
    shown = [f"{cell.cell[1]}" + (f" ({cell.cell[2]})" if cell.cell[2] else "") for cell in cells]
    return "width " + (shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}")
