"""Figures in the house style: panels side by side, one legend, SVG and PNG, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep.errors import UserError
from mixersweep.report.canvas import STYLE, ticked
from mixersweep.report.style import FAINT, INK, Look, looks
from mixersweep.runs.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FAINT", "INK", "Look", "band", "counted", "figure", "log_axis", "look_of", "looks"]

Panel = Callable[["Axes"], None]


def figure(
    out: Path,
    name: str,
    title: str,
    panels: Sequence[Panel],
    *,
    wide: float = 4.2,
    high: float = 3.6,
    columns: int = 3,
    one_legend: bool = True,
) -> list[Path]:
    """Draw panels in as few rows of ``columns`` or fewer as take them, with one legend for all or one in each; write
    ``name.svg`` and ``name.png``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        rows = -(-len(panels) // columns)
        across = -(-len(panels) // rows)
        drawing = Figure(figsize=(wide * across + 0.4, high * rows + 0.7), layout="constrained")
        every = drawing.subplots(rows, across, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for axes, panel in zip(every, panels, strict=False):
            panel(axes)
            axes.set_axisbelow(True)
            labelled = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
            if one_legend:
                handles = {**labelled, **handles}
            elif labelled:
                axes.legend(fontsize=8)
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        if handles:
            drawing.legend(
                list(handles.values()),
                list(handles),
                loc="outside lower center",
                ncols=max(1, min(len(handles), int(2.2 * across * wide / 4.6) or 1)),
                handlelength=2.6,
                columnspacing=1.4,
            )
        drawing.suptitle(title, fontsize=10, x=0.01, ha="left")
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")
        paths = []
        for kind, metadata in (("svg", {"Date": None, "Title": title}), ("png", {"Title": title})):
            path = out / f"{name}.{kind}"
            try:
                with written_whole(path) as file:
                    drawing.savefig(file, format=kind, dpi=150, metadata=metadata)
            except OSError as error:
                raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
            paths.append(path)
    return paths


def counted(axes: Axes) -> None:
    """An x axis of whole numbers: epochs, layers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_axis(axes: Axes, values: Sequence[float], which: str = "x", base: int = 2) -> None:
    """A logarithmic axis with a tick at each value, or at round numbers where those would crowd."""
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


def band(axes: Axes, x: Sequence[float], middle: Sequence[float], low: Any, high: Any, look: Look, label: str) -> None:
    """A line of means with its interval behind it, or at a single point with a bar; None draws no interval."""
    axes.plot(x, middle, label=label, **look.line())
    if low is None or high is None or None in (*low, *high):
        return
    if len(x) == 1:
        axes.errorbar(x, middle, [[middle[0] - low[0]], [high[0] - middle[0]]], color=look.colour, capsize=3)
    else:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)


def look_of(models: Sequence[str]) -> dict[str, Look]:
    """A look for each model name."""
    return looks([(model, model) for model in dict.fromkeys(models)])
