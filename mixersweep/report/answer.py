"""The answer in two sentences, each no stronger than its test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from mixersweep.report import sizes
from mixersweep.report.claims import Claim, Pair, Trend
from mixersweep.report.objections import diverged_said
from mixersweep.report.recipe import PURPOSES, Cell, Comparison
from mixersweep.report.say import between, listed, p_said, points
from mixersweep.report.statistics import Statistics

C = TypeVar("C", bound=Claim)


def answer(statistics: Statistics) -> str:
    """The answer in two sentences, of width and of structure, each no stronger than its test."""
    return f"{_of_width(statistics)} {_of_structure(statistics)}"


def _parted(claims: Sequence[C]) -> tuple[list[C], list[C], list[C]]:
    """Those that are claimed, those that something stands against, and those that are not shown."""
    decided = [claim for claim in claims if claim.decided]
    against = [claim for claim in claims if claim.barred or (claim.shown and claim.against)]
    open_ = [claim for claim in claims if not claim.barred and not claim.shown]
    return decided, against, open_


def _of_width(statistics: Statistics) -> str:
    comparison = statistics.comparison
    held = f"At {_budget(comparison)} on {comparison.fixed.get('data.name')}"
    if not statistics.trends:
        return f"{held}, no model was trained at two widths, so nothing is said of width."
    known = [trend for trend in statistics.trends if trend.slope.interval is not None]
    if not known:
        rises = ", ".join(f"{trend.name} {_rise(trend, True)}" for trend in statistics.trends)
        return (
            f"{held}, test accuracy changes with the width by {rises}, of one seed each: "
            "without a second seed there is no interval and no claim."
        )
    decided, against, flat = _parted(known)
    parts = [
        f"{said} " + listed([f"{trend.name} ({_trend_said(trend)})" for trend in trends])
        for said, trends in (
            ("wider is better for", [trend for trend in decided if trend.slope.value > 0]),
            ("wider is worse for", [trend for trend in decided if trend.slope.value < 0]),
            ("no trend with width is shown for", flat),
        )
        if trends
    ]
    parts += _not_claimed("no trend is claimed for ", [(trend.name, _rise(trend), trend) for trend in against], ", ")
    sample = f"n = {_span([t.slope.runs for t in known])} runs of {_span([t.slope.seeds for t in known])} seeds a model"
    left = max(trend.seeds_left_out for trend in known)
    sample += f", {_many(str(left), 'seed')} that not all widths have left out" if left else ""
    unit = f"points of test accuracy over the range of widths, {_intervals(statistics, known)}{sample}"
    return f"{held}, {listed(parts, '; ')} ({unit}{_seen(flat)})."


def _rise(trend: Trend, unit: bool = False) -> str:
    """``+0.3 from 426 to 650``."""
    return f"{points(trend.rise.value, unit)} from {trend.widths[0]:,} to {trend.widths[-1]:,}"


def _trend_said(trend: Trend) -> str:
    said = f"{_rise(trend)}, {between(trend.rise.interval)}{_p_said(trend, trend.rise.detectable)}"
    also = sizes.beyond(trend.sizes) if trend.decided else ""
    return said + (f"; along it vary {also}" if also else "")


def _p_said(claim: Claim, detectable: float | None) -> str:
    """The p of what is shown, and of what the interval alone would show; of all else what would show."""
    low, high = claim.effect.interval or (0.0, 0.0)
    said = "" if low <= 0 <= high and not claim.shown else f", {p_said(claim.p_holm, claim.effect.at_floor)}"
    return said if claim.shown else said + _would_show(detectable)


def _would_show(detectable: float | None) -> str:
    return "" if detectable is None else f"; {100 * detectable:.1f} would show"


def _seen(open_: Sequence[Claim]) -> str:
    """What ``would show`` means, where it was said."""
    return "; what would show is shown 4 times in 5" if open_ else ""


def _intervals(statistics: Statistics, claims: Sequence[Claim]) -> str:
    """What intervals and p take in, and what they are conditional on."""
    over = ["seeds"]
    over += ["test images"] if all(claim.effect.over_seeds_and_images for claim in claims) else []
    over += ["what else sets a width apart"] if statistics.between is not None else []
    given = "" if statistics.between is not None else " given each width's learning rate and sizes"
    counted = f"p by Holm over {statistics.claims} claim{'s' * (statistics.claims != 1)}, " if statistics.claims else ""
    return f"95% intervals over {listed(over)}{given}, {counted}"


def _of_structure(statistics: Statistics) -> str:
    pairs = statistics.pairs
    if len(statistics.comparison.variants) < 2:
        return (
            f"All runs are of one model ({next(iter(statistics.comparison.variants))}), so no structures are compared."
        )
    if not pairs:
        return "No two models have runs at equal targets, shape and seed, so no structures are compared."
    known = [pair for pair in pairs if pair.difference.p is not None]
    untested = [pair for pair in pairs if pair.difference.p is None]
    decided, against, open_ = _parted(known)
    parts = [listed([_better(pair) for pair in decided])] if decided else []
    if open_:
        parts.append(
            "no difference is shown between "
            + listed([_open(pair) for pair in open_], ", nor between ", ", nor between ")
        )
    named = [(f"{pair.first} and {pair.second}", points(pair.difference.value, False), pair) for pair in against]
    parts += _not_claimed("nothing is claimed of ", named, ", nor of ")
    if untested:
        said = listed([f"{pair.first} and {pair.second} ({points(pair.difference.value)})" for pair in untested])
        parts.append(f"one seed decides nothing between {said}")
    tested = pairs if untested else known
    widths = _span([len({width for width, _ in pair.widths}) for pair in tested])
    seeds = _span([pair.difference.seeds for pair in tested])
    sample = f"n = {_span([pair.pairs for pair in tested])} pairs of {_many(seeds, 'seed')} at {_many(widths, 'width')}"
    told = f"points of test accuracy, {_intervals(statistics, known)}" if known else ""
    before = [trend for trend in statistics.trends if trend.slope.interval is not None]
    told = "points, intervals and p as before, " if before else told
    seen = _seen(open_) if not _parted(before)[2] else ""
    return f"{_equal(pairs)}, {listed(parts, '; ')} ({told}{sample}{seen}){_conditions(statistics)}."


def _equal(pairs: Sequence[Pair]) -> str:
    """What the two models of a pair have in common."""
    if pairs[0].at_best is None:
        return "At equal width, connections and seed"
    chose = list(dict.fromkeys(seed for pair in pairs for seed in pair.chosen_on))
    if not chose:
        return "At the best width of each, chosen on validation"
    return f"At the best width of each, chosen on validation of seeds {listed(chose)} and tested on others"


def _not_claimed(said: str, named: Sequence[tuple[str, str, Claim]], comma: str) -> list[str]:
    """What is not claimed, those that the same stands against together."""
    by_reason: dict[str, list[str]] = {}
    for name, value, claim in named:
        by_reason.setdefault("; ".join(claim.against), []).append(f"{name} ({value}")
    last = None if comma == ", " else comma
    each = [f"{listed([name + ')' for name in names], comma, last)}: {why}" for why, names in by_reason.items()]
    return [said + text for text in each]


def _better(pair: Pair) -> str:
    first, second = (pair.first, pair.second) if pair.difference.value > 0 else (pair.second, pair.first)
    sign = 1 if pair.difference.value > 0 else -1
    low, high = sorted(sign * bound for bound in pair.difference.interval or (0.0, 0.0))
    said = f"{first} is better than {second} ({points(abs(pair.difference.value), False)}, {between((low, high))}, "
    said += p_said(pair.p_holm, pair.difference.at_floor)
    if pair.clean is not None:
        said += f"; {points(sign * pair.clean.value, False)} where channels are not fewer than classes"
    unlike = sizes.beyond(pair.sizes)
    return said + (f"; sizes differ by up to {unlike})" if unlike else ")")


def _open(pair: Pair) -> str:
    e = pair.difference
    said = f"{points(e.value, False)}, {between(e.interval)}{_p_said(pair, e.detectable)}"
    return f"{pair.first} and {pair.second} ({said})"


def _conditions(statistics: Statistics) -> str:
    """What of the runs themselves a reader of the answer has to know."""
    comparison = statistics.comparison
    own: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        own.setdefault(cell[0], []).append(cell)
    rates = comparison.rates
    parts = []
    unsearched = [model for model, cells in own.items() if not all(rates[cell].searched for cell in cells)]
    if unsearched:
        whose = "" if len(unsearched) == len(own) else f" of {listed(unsearched)}"
        parts.append(f"learning rates{whose} were not searched")
    chose = [model for model, cells in own.items() if any(rates[cell].on_reported > 1 for cell in cells)]
    if chose:
        parts.append(f"the reported seeds chose the learning rates of {listed(chose)}")
    if once := [name for name in PURPOSES if all(_drawn_once(comparison, cells, name) for cells in own.values())]:
        parts.append(
            f"all seeds{' of a model' * (len(own) > 1)} share one {listed(once)}, of which nothing wider is said"
        )
    parts += [diverged_said(cells, rates) for cells in own.values() if any(rates[cell].diverged for cell in cells)]
    return f"; {'; '.join(parts)}" if parts else ""


def _drawn_once(comparison: Comparison, cells: Sequence[Cell], purpose: str) -> bool:
    """Whether all runs of a model have one seed for this, whatever their seed."""
    name = f"seeds.{purpose}"
    settings = [{**row["settings"], **row.get("named_by", {})} for cell in cells for row in comparison.cells[cell]]
    values = {own.get(name) for own in settings}
    return len(values) == 1 and None not in values


def _many(count: str, what: str) -> str:
    return f"{count} {what}{'' if count == '1' else 's'}"


def _span(counts: Sequence[int]) -> str:
    """``3``, or ``3 to 5``."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _budget(comparison: Comparison) -> str:
    return comparison.held
