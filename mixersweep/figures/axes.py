"""Set up the axes of a figure: readable ticks, logarithmic scales, whole numbers, means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mixersweep.figures.palette import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ticked(value: float, _: object = None) -> str:
    """Format a number for a tick: ``0.05``, ``1,024``, ``2·10⁶``."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        if not exponent:
            return f"{value:.3g}"
        digits = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{digits}" if float(mantissa) == 1 else f"{mantissa}·10{digits}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def scaled(axes: Axes, label: str, values: Sequence[float], log: int = 0, whole: bool = False) -> None:
    """Label an x axis and scale it, with ticks at round numbers.

    It is logarithmic to base ``log`` (0 for linear) where all values are positive and span more than a factor of 1.5;
    a linear axis has only whole ticks with ``whole``.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    positive = [value for value in values if value > 0]
    wide = bool(positive) and len(positive) == len(values) and max(positive) > 1.5 * min(positive)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(ticked))
    if not (log and wide):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        return
    axes.set_xscale("log", base=log)
    span = math.log10(max(positive) / min(positive))
    if log == 2:
        subs: Sequence[float] = (1.0, 1.5) if span < 0.5 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(base=2, subs=subs, numticks=8 if span < 3 else 7))
    else:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if span < 1.8 else (1.0,), numticks=9))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(ticked))


def log_axis(axes: Axes, values: Sequence[float], which: str = "x", base: int = 2) -> None:
    """Make an axis logarithmic, with a tick at each value, or at powers of ``base`` where those would crowd."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=base)
    distinct = sorted(set(values))
    apart = all(later / sooner > 1.18 for sooner, later in pairwise(distinct) if sooner > 0)
    axis.set_major_locator(
        FixedLocator(distinct) if len(distinct) <= 7 and apart else LogLocator(base=base, subs=(1.0,), numticks=8)
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(ticked))


def counted(axes: Axes) -> None:
    """Put ticks of the x axis at whole numbers only: epochs, layers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def framed(axes: Axes, values: Sequence[float]) -> None:
    """Set the range of the y axis to the values with a margin; the band of few seeds may reach beyond it."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def band(axes: Axes, x: Sequence[float], middle: Sequence[float], low: Any, high: Any, look: Look, label: str) -> None:
    """Draw a line of means with its intervals as a band, or a single point with an error bar.

    No interval is drawn where ``low`` or ``high`` is None or contains None.
    """
    axes.plot(x, middle, label=label, **look.line())
    if low is None or high is None or None in (*low, *high):
        return
    if len(x) == 1:
        axes.errorbar(x, middle, [[middle[0] - low[0]], [high[0] - middle[0]]], color=look.colour, capsize=3)
    else:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)
