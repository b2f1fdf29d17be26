"""Reasons not to claim an effect though its test may show one: unequal readouts, tuning or seeds, runs that diverged.

Some reasons are known before any test and bar it (``reasons_to_bar_*``). Others depend on the direction of the effect
(``objections_to_*``): what handicaps the better model, or flatters the worse one, makes the claim safer, not weaker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixersweep.report import readouts
from mixersweep.report.bootstrap import Estimate
from mixersweep.report.claims import Pair, Reason, Trend
from mixersweep.report.rates import Rates
from mixersweep.report.recipe import Cell, Comparison
from mixersweep.report.say import format_interval, format_points, join_words

MOST_NAMED = 3
"""The most widths that a reason lists one by one."""


def reasons_to_bar_trend(cells: Sequence[Cell], comparison: Comparison, shares_seeds: bool) -> list[Reason]:
    """The reasons not to claim a trend, whatever its size: readouts that change, unequal tuning, seeds not shared."""
    rates, found = comparison.rates, readouts.reasons_to_bar_trend([comparison.cells[cell] for cell in cells])
    unsearched = [cell for cell in cells if not rates[cell].is_searched]
    if unsearched:
        where = "" if len(unsearched) == len(cells) else f" at {describe_widths(unsearched)}"
        epochs = join_words([str(count) for count in comparison.search_epochs]) if comparison.search_epochs else ""
        length = f" over the full training length, only over {epochs} epochs" if epochs else ""
        found.append(Reason(f"no learning rate was searched{where}{length}"))
    found += _edge_reasons("the", [cell for cell in cells if rates[cell].edge], rates)
    if len({rates[cell].rates_of_reported for cell in cells}) > 1:
        chose = [cell for cell in cells if rates[cell].rates_of_reported > 1]
        found.append(Reason(f"only at {describe_widths(chose)} did the reported seeds choose the learning rate"))
    if not shares_seeds:
        found.append(Reason("its widths have fewer than two seeds in common"))
    return found


def reasons_to_bar_pair(joined: Sequence[tuple[Cell, Cell]], comparison: Comparison) -> list[Reason]:
    """The reasons not to claim a difference, whatever its size: unequal readouts, learning rates chosen unequally."""
    rates, cells = comparison.rates, comparison.cells
    found = readouts.reasons_to_bar_pair([(cells[one], cells[other]) for one, other in joined])
    chose = [cell for pair in joined for cell in pair if rates[cell].rates_of_reported > 1]
    if any(rates[one].rates_of_reported != rates[other].rates_of_reported for one, other in joined):
        models = join_words(list(dict.fromkeys(cell[0] for cell in chose)))
        why = f"the reported seeds chose the learning rates of {models}, and not equally for both models"
        found.append(Reason(why))
    return found


def objections_to_pair(pair: Pair, rates: Mapping[Cell, Rates]) -> list[Reason]:
    """The objections to a difference that follow from its direction: what favours the better of the two models."""
    sides = [[cells[side] for cells in pair.joined] for side in (0, 1)]
    better, worse = sides if pair.difference.value > 0 else sides[::-1]
    found = []
    if any(rates[one].is_searched and not rates[other].is_searched for one, other in zip(better, worse, strict=True)):
        found.append(Reason(f"learning rates were searched only for {better[0][0]}"))
    found += _edge_reasons(f"{worse[0][0]}'s", [cell for cell in worse if rates[cell].edge], rates)
    lost = [sum(rates[cell].diverged_fraction for cell in cells) for cells in (better, worse)]
    if lost[0] > lost[1]:
        found.append(Reason(describe_diverged(better, rates)))
    return [*found, *_head_reasons(pair.difference, pair.clean)]


def objections_to_trend(trend: Trend, rates: Mapping[Cell, Rates]) -> list[Reason]:
    """The objections to a trend that follow from its direction: runs that diverged where it is best."""
    x = np.log2(trend.widths)
    growing = float((x - x.mean()) @ [rates[cell].diverged_fraction for cell in trend.cells])
    if growing * trend.slope.value > 0:
        return [Reason(f"{describe_diverged(trend.cells, rates)}, most of them where it does best")]
    return []


def _edge_reasons(whose: str, cells: Sequence[Cell], rates: Mapping[Cell, Rates]) -> list[Reason]:
    if not cells:
        return []
    edges = join_words(list(dict.fromkeys(str(rates[cell].edge) for cell in cells)), " and ", " or ")
    return [Reason(f"{whose} best learning rate is the {edges} tried at {describe_widths(cells)}")]


def _head_reasons(whole: Estimate, clean: Estimate | None) -> list[Reason]:
    """The objection where runs without rank-limited heads do not confirm a difference; none where they do.

    They confirm it where their interval lies on the same side of 0.
    """
    if clean is None:
        return []
    low, high = clean.interval or (clean.value, clean.value)
    if low > 0 if whole.value > 0 else high < 0:
        return []
    without = f"{format_points(clean.value, False)} (95% {format_interval(clean.interval)})"
    return [Reason("only rank-limited heads show it", f"; without them, {without}")]


def describe_diverged(cells: Sequence[Cell], rates: Mapping[Cell, Rates]) -> str:
    """``8 of 20 runs of sw_mlp diverged``."""
    gone, runs = (sum(getattr(rates[cell], name) for cell in dict.fromkeys(cells)) for name in ("diverged", "runs"))
    return f"{gone} of {runs} runs of {cells[0][0]} diverged"


def describe_widths(cells: Sequence[Cell]) -> str:
    """``width 126 (wide), 153 and 204``; ``5 widths`` where there are more than ``MOST_NAMED``."""
    cells = list(dict.fromkeys(cells))
    if len(cells) > MOST_NAMED:
        return f"{len(cells)} widths"
    shown = [f"{cell[1]:,}" + (f" ({cell[2]})" if cell[2] else "") for cell in cells]
    return "width " + join_words(shown)
