"""Numbers and lists as sentences have them."""

from __future__ import annotations

from collections.abc import Sequence

from mixersweep.report.bootstrap import Interval


def points(share: float, unit: bool = True) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{_tenths(share)}{' points' if unit else ''}"


def between(interval: Interval | None) -> str:
    """An interval in percentage points."""
    if interval is None:
        return "none"
    return " to ".join(map(_tenths, interval))


def _tenths(share: float) -> str:
    """Percentage points with a sign, where nothing is no less than nothing."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def p_said(p: float | None, at_floor: bool = False) -> str:
    """``p = 0.012``, or ``p ≤ 0.0026`` where no more draws were made than show so much."""
    if p is None:
        return "no p"
    if at_floor:
        return f"p ≤ {p:.2g}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def many(count: int, what: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def listed(parts: Sequence[str], comma: str = ", ", last: str | None = None) -> str:
    """``a, b and c``."""
    last = (" and " if comma == ", " else comma) if last is None else last
    return parts[0] if len(parts) == 1 else comma.join(parts[:-1]) + last + parts[-1]
