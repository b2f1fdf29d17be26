"""Why a claim is not made though its test may show an effect: unequal readouts, tuning or seeds, runs that diverged.

Some reasons are known before any test (``barred``). Others depend on the direction (``raised``): what only handicaps
the model that is found better, or flatters the one that is found worse, makes the claim safer, not weaker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixersweep.report import readouts
from mixersweep.report.bootstrap import Estimate
from mixersweep.report.claims import Pair, Reason, Trend
from mixersweep.report.rates import Rates
from mixersweep.report.recipe import Cell, Comparison
from mixersweep.report.say import between, listed, points

NAMED = 3
"""How many widths a reason names."""


def bars_trend(cells: Sequence[Cell], comparison: Comparison, shares_seeds: bool) -> list[Reason]:
    """What keeps a trend from being claimed whatever its size."""
    rates, found = comparison.rates, readouts.bars_trend([comparison.cells[cell] for cell in cells])
    unsearched = [cell for cell in cells if not rates[cell].searched]
    if unsearched:
        where = "" if len(unsearched) == len(cells) else f" at {widths_said(unsearched)}"
        epochs = listed([str(count) for count in comparison.search_epochs]) if comparison.search_epochs else ""
        length = f" for as long as it trained, only for {epochs} epochs" if epochs else ""
        found.append(Reason(f"no learning rate was searched{where}{length}"))
    found += _edges("the", [cell for cell in cells if rates[cell].edge], rates)
    if len({rates[cell].on_reported for cell in cells}) > 1:
        chose = [cell for cell in cells if rates[cell].on_reported > 1]
        found.append(Reason(f"the reported seeds chose the learning rate at {widths_said(chose)} alone"))
    if not shares_seeds:
        found.append(Reason("its widths do not share two seeds"))
    return found


def bars_pair(joined: Sequence[tuple[Cell, Cell]], comparison: Comparison) -> list[Reason]:
    """What keeps a difference from being claimed whatever its size."""
    rates, cells = comparison.rates, comparison.cells
    found = readouts.bars_pair([(cells[one], cells[other]) for one, other in joined])
    chose = [cell for pair in joined for cell in pair if rates[cell].on_reported > 1]
    if any(rates[one].on_reported != rates[other].on_reported for one, other in joined):
        models = listed(list(dict.fromkeys(cell[0] for cell in chose)))
        found.append(Reason(f"the reported seeds chose the learning rates of {models}, and not of both models alike"))
    return found


def raised_by_pair(pair: Pair, rates: Mapping[Cell, Rates]) -> list[Reason]:
    """What the direction of a difference raises against it."""
    sides = [[cells[side] for cells in pair.joined] for side in (0, 1)]
    better, worse = sides if pair.difference.value > 0 else sides[::-1]
    found = []
    if any(rates[one].searched and not rates[other].searched for one, other in zip(better, worse, strict=True)):
        found.append(Reason(f"learning rates were searched for {better[0][0]} alone"))
    found += _edges(f"{worse[0][0]}'s", [cell for cell in worse if rates[cell].edge], rates)
    lost = [sum(rates[cell].lost for cell in cells) for cells in (better, worse)]
    if lost[0] > lost[1]:
        found.append(Reason(diverged_said(better, rates)))
    return [*found, *_of_heads(pair.difference, pair.clean)]


def raised_by_trend(trend: Trend, rates: Mapping[Cell, Rates]) -> list[Reason]:
    """What the direction of a trend raises against it."""
    x = np.log2(trend.widths)
    growing = float((x - x.mean()) @ [rates[cell].lost for cell in trend.cells])
    if growing * trend.slope.value > 0:
        return [Reason(f"{diverged_said(trend.cells, rates)}, most where it does best")]
    return []


def _edges(whose: str, cells: Sequence[Cell], rates: Mapping[Cell, Rates]) -> list[Reason]:
    if not cells:
        return []
    ends = listed(list(dict.fromkeys(str(rates[cell].edge) for cell in cells)), " and ", " or ")
    return [Reason(f"{whose} best learning rate is the {ends} tried at {widths_said(cells)}")]


def _of_heads(whole: Estimate, clean: Estimate | None) -> list[Reason]:
    """Whether the runs without rank-limited heads bear it out: their interval on the same side of 0."""
    if clean is None:
        return []
    low, high = clean.interval or (clean.value, clean.value)
    if low > 0 if whole.value > 0 else high < 0:
        return []
    said = f"{points(clean.value, False)}, {between(clean.interval)}, where channels are not fewer than classes"
    return [Reason("rank-limited heads alone show it", f": {said}")]


def diverged_said(cells: Sequence[Cell], rates: Mapping[Cell, Rates]) -> str:
    """``8 of 20 runs of sw_mlp diverged``."""
    gone, runs = (sum(getattr(rates[cell], name) for cell in dict.fromkeys(cells)) for name in ("diverged", "runs"))
    return f"{gone} of {runs} runs of {cells[0][0]} diverged"


def widths_said(cells: Sequence[Cell]) -> str:
    """``width 126 (wide), 153 and 204``, or how many there are."""
    cells = list(dict.fromkeys(cells))
    if len(cells) > NAMED:
        return f"{len(cells)} widths"
    shown = [f"{cell[1]:,}" + (f" ({cell[2]})" if cell[2] else "") for cell in cells]
    return "width " + listed(shown)
