"""The answer in two sentences, each no stronger than its test; and numbers as sentences have them."""

from __future__ import annotations

from collections.abc import Sequence

from mixersweep.report.bootstrap import Estimate, Interval
from mixersweep.report.recipe import Comparison
from mixersweep.report.statistics import Pair, Statistics, Trend


def answer(statistics: Statistics) -> str:
    """The answer in two sentences, of width and of structure, each no stronger than its test."""
    return f"{_of_width(statistics)} {_of_structure(statistics)}"


def _of_width(statistics: Statistics) -> str:
    comparison = statistics.comparison
    held = f"At {_budget(comparison)} on {comparison.fixed.get('data.name')}"
    if not statistics.trends:
        return f"{held}, no model was trained at two widths, so nothing is said of width."
    known = [trend for trend in statistics.trends if trend.slope.interval is not None]
    if not known:
        slopes = ", ".join(f"{trend.name} {points(trend.slope.value)}" for trend in statistics.trends)
        return (
            f"{held}, test accuracy changes per doubling of the width by {slopes}, of one seed each: "
            "without a second seed there is no interval and no claim."
        )
    rising = [trend for trend in known if trend.decided and trend.slope.value > 0]
    falling = [trend for trend in known if trend.decided and trend.slope.value < 0]
    unclear = [trend for trend in known if trend.shown and not trend.decided]
    flat = [trend for trend in known if not trend.shown]
    parts = [
        f"{said} " + listed([_trend_said(trend) for trend in trends])
        for said, trends in (
            ("wider is better for", rising),
            ("wider is worse for", falling),
            ("no trend with width is shown for", flat),
        )
        if trends
    ]
    if unclear:
        parts.append("no trend is claimed for " + listed([_borne_out(t.name, t.slope, t.clean) for t in unclear]))
    seeds = sorted({trend.slope.seeds for trend in known})
    runs = sorted({trend.slope.runs for trend in known})
    ends = min(t.widths[0] for t in known), max(t.widths[-1] for t in known)
    over = " over seeds and test images" if all(t.slope.over_seeds_and_images for t in known) else " over seeds"
    unit = (
        f"points of test accuracy per doubling of the width between {ends[0]:,} and {ends[1]:,}, 95% intervals{over}, "
        f"n = {_span(runs)} runs of {_span(seeds)} seeds a model"
    )
    return f"{held}, {listed(parts, '; ')} ({unit}){_confounded([*rising, *falling, *flat])}."


def _trend_said(trend: Trend) -> str:
    return f"{trend.name} ({points(trend.slope.value, False)}, {between(trend.slope.interval)})"


def _confounded(trends: Sequence[Trend]) -> str:
    """What of the trends may come from heads that have too few channels rather than from width."""
    parts = []
    for trend in trends:
        limited = len(trend.widths) - len(trend.clean_widths)
        if trend.clean is not None:
            without = f"{points(trend.clean.value, False)}, {between(trend.clean.interval)}"
            parts.append(f"{trend.name} {limited} (without them {without})")
        elif limited:
            parts.append(f"{trend.name} {limited} of {len(trend.widths)}")
    if not parts:
        return ""
    return f"; widths with fewer channels than classes, where the head alone may be the limit: {listed(parts)}"


def _of_structure(statistics: Statistics) -> str:
    pairs = statistics.pairs
    if len(statistics.comparison.variants) < 2:
        return (
            f"All runs are of one model ({next(iter(statistics.comparison.variants))}), so no structures are compared."
        )
    if not pairs:
        return "No two models have runs at equal targets, shape and seed, so no structures are compared."
    same = "At equal width, connections and seed"
    equal = same if pairs[0].at_best is None else "At the best width of each, chosen on validation"
    untested = [pair for pair in pairs if pair.p_holm is None]
    decided = [pair for pair in pairs if pair.decided]
    unclear = [pair for pair in pairs if pair.shown and not pair.decided]
    open_ = [pair for pair in pairs if pair.p_holm is not None and not pair.shown]
    parts = [listed([_better(pair) for pair in decided])] if decided else []
    if open_:
        parts.append(
            "no difference is shown between "
            + listed([_open(pair) for pair in open_], ", nor between ", ", nor between ")
        )
    if unclear:
        named = [_borne_out(f"{pair.first} and {pair.second}", pair.difference, pair.clean) for pair in unclear]
        parts.append("nothing is claimed of " + listed(named, ", nor of ", ", nor of "))
    if untested:
        said = listed([f"{pair.first} and {pair.second} ({points(pair.difference.value)})" for pair in untested])
        parts.append(f"one seed decides nothing between {said}")
    tested = pairs if untested else [*decided, *unclear, *open_]
    counts = _span(sorted({pair.pairs for pair in tested}))
    widths = _span(sorted({len({width for width, _ in pair.widths}) for pair in tested}))
    seeds = _span(sorted({pair.difference.seeds for pair in tested}))
    sample = f"n = {counts} pairs of {_many(seeds, 'seed')} at {_many(widths, 'width')}"
    told = (
        "points of test accuracy, 95% intervals over seeds and test images, p by Holm, "
        if len(untested) < len(pairs)
        else ""
    )
    if any(pair.difference.images is None for pair in tested):
        told = told.replace(" and test images", "")
    return f"{equal}, {listed(parts, '; ')} ({told}{sample})."


def _better(pair: Pair) -> str:
    first, second = (pair.first, pair.second) if pair.difference.value > 0 else (pair.second, pair.first)
    sign = 1 if pair.difference.value > 0 else -1
    low, high = sorted(sign * bound for bound in pair.difference.interval or (0.0, 0.0))
    said = f"{first} is better than {second} ({points(abs(pair.difference.value), False)}, {between((low, high))}, "
    said += p_said(pair.p_holm)
    if pair.clean is not None:
        said += f"; {points(sign * pair.clean.value, False)} where channels are not fewer than classes"
    return said + ")"


def _open(pair: Pair) -> str:
    e = pair.difference
    said = f"{points(e.value, False)}, {between(e.interval)}, {p_said(pair.p_holm)}"
    return f"{pair.first} and {pair.second} ({said})"


def _borne_out(name: str, whole: Estimate, clean: Estimate | None) -> str:
    """What is not claimed: the runs without rank-limited heads do not bear it out, or there are too few of them."""
    if clean is None:
        return f"{name} ({points(whole.value, False)}, but channels are fewer than classes)"
    without = f"{points(clean.value, False)}, {between(clean.interval)}, where channels are not fewer than classes"
    return f"{name} ({points(whole.value, False)}, but {without})"


def _many(count: str, what: str) -> str:
    return f"{count} {what}{'' if count == '1' else 's'}"


def _span(counts: Sequence[int]) -> str:
    """``3``, or ``3 to 5``."""
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"


def _budget(comparison: Comparison) -> str:
    return comparison.held


def points(share: float, unit: bool = True) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * share:+.1f}{' points' if unit else ''}".replace("-", "−")


def between(interval: Interval | None) -> str:
    """An interval in percentage points."""
    if interval is None:
        return "none"
    return " to ".join(f"{100 * bound:+.1f}".replace("-", "−") for bound in interval)


def p_said(p: float | None) -> str:
    """``p = 0.012``; what lies below what the draws resolve is said so."""
    if p is None:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def listed(parts: Sequence[str], comma: str = ", ", last: str | None = None) -> str:
    """``a, b and c``."""
    last = (" and " if comma == ", " else comma) if last is None else last
    return parts[0] if len(parts) == 1 else comma.join(parts[:-1]) + last + parts[-1]
