"""Format numbers and lists for sentences."""

from __future__ import annotations

from collections.abc import Sequence

from mixersweep.report.bootstrap import Interval


def format_points(fraction: float, unit: bool = True) -> str:
    """A difference of accuracies, given as a fraction, in percentage points with its sign."""
    return f"{_tenths(fraction)}{' points' if unit else ''}"


def format_interval(interval: Interval | None) -> str:
    """An interval of differences in percentage points: ``−0.5 to +2.0``."""
    if interval is None:
        return "none"
    return " to ".join(map(_tenths, interval))


def _tenths(fraction: float) -> str:
    """Percentage points to one decimal, with a sign; 0 is never negative."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}".replace("-", "−")


def format_p(p: float | None, at_floor: bool = False) -> str:
    """``p = 0.012``, or ``p ≤ 0.0026`` where that is the smallest p that the number of draws allows."""
    if p is None:
        return "no p"
    if at_floor:
        return f"p ≤ {p:.2g}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def plural(count: int, what: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def join_words(parts: Sequence[str], comma: str = ", ", last: str | None = None) -> str:
    """``a, b and c``."""
    last = (" and " if comma == ", " else comma) if last is None else last
    return parts[0] if len(parts) == 1 else comma.join(parts[:-1]) + last + parts[-1]
