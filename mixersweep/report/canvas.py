"""The paper that figures are drawn on: their style, axes, ticks and legends, and how they come to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixersweep.report.axes import Axis
from mixersweep.report.style import FAINT, INK
from mixersweep.runs.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Figure:
    """One figure, on disk and as matplotlib has it: what it shows, and the same in words for who cannot see it.

    ``paths`` are those of its SVG and PNG, none where it was not written.
    """

    name: str
    title: str
    caption: str
    paths: dict[str, Path]
    drawing: Drawing = field(repr=False, compare=False)


def scaled(axes: Axes, axis: Axis, values: Sequence[float]) -> None:
    """Label and space an axis; ticks stand at round numbers, as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    positive = [value for value in values if value > 0]
    wide = bool(positive) and len(positive) == len(values) and max(positive) > 1.5 * min(positive)
    axes.set_xlabel(axis.label)
    if not (axis.log and wide):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis.key in ("depth", "epoch")))
        axes.xaxis.set_major_formatter(FuncFormatter(ticked))
        return
    axes.set_xscale("log", base=axis.log)
    span = np.log10(max(positive) / min(positive))
    if axis.log == 2:
        subs: Sequence[float] = (1.0, 1.5) if span < 0.5 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(base=2, subs=subs, numticks=8 if span < 3 else 7))
    else:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if span < 1.8 else (1.0,), numticks=9))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(ticked))


def framed(axes: Axes, values: Sequence[float]) -> None:
    """Let the runs set the frame of the y axis; a band of few seeds may reach out of it."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def ticked(value: float, _: object = None) -> str:
    """A number at an axis, as people write it."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        if not exponent:
            return f"{value:.3g}"
        digits = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{digits}" if float(mantissa) == 1 else f"{mantissa}·10{digits}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
}


@contextmanager
def _axes(title: str) -> Iterator[tuple[Drawing, Axes]]:
    """A figure of its own, outside pyplot, so that nothing global is touched."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    settings: Any = {**STYLE, "svg.hashsalt": title}
    with matplotlib.rc_context(settings):
        drawing = Drawing(figsize=(6.4, 4.6), layout="constrained")
        yield drawing, drawing.add_subplot()


def saved(name: str, title: str, out: Path | None, make: Callable[[Axes], str]) -> Figure:
    """Draw with ``make`` and, where there is an ``out``, write ``name.svg`` and ``name.png`` there, the same bytes for
    the same numbers.
    """
    with _axes(name) as (drawing, axes):
        caption = make(axes)
        axes.set_axisbelow(True)
        rows = _legends(drawing, axes)
        drawing.set_figheight(4.2 + 0.19 * rows)
        axes.set_title(title, fontsize=9, loc="left")
        drawing.draw_without_rendering()  # the layout is found once, for both formats
        drawing.set_layout_engine("none")
        paths: dict[str, Path] = {}
        for kind, metadata in (("svg", {"Date": None, "Title": title}), ("png", {"Title": title})):
            if out is None:
                continue
            paths[kind] = out / f"{name}.{kind}"
            with written_whole(paths[kind]) as file:
                drawing.savefig(file, format=kind, dpi=200, metadata=metadata)
    return Figure(name, title, caption, paths, drawing)


def _legends(drawing: Drawing, axes: Axes) -> int:
    """Own lines above the axes, published ones below; returns how many rows they take."""
    handles, labels = axes.get_legend_handles_labels()
    rows = 0
    places: tuple[tuple[Literal["outside upper left", "outside lower left"], bool], ...]
    places = (("outside upper left", False), ("outside lower left", True))
    for place, published_too in places:
        chosen = [number for number, label in enumerate(labels) if label.startswith("published ") == published_too]
        if not chosen:
            continue
        columns = 2 if max(len(labels[number]) for number in chosen) > 18 else 3
        style: dict[str, Any] = {"handlelength": 3.6, "columnspacing": 1.4, "fontsize": 7.5 if published_too else 9}
        names = [labels[number] for number in chosen]
        drawing.legend([handles[number] for number in chosen], names, loc=place, ncols=columns, **style)
        rows += -(-len(chosen) // columns)
    return rows
