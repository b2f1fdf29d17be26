"""Draw and save a figure of a report: one panel, a legend of its own lines above, one of published lines below.

Also what all figures say of seeds: the interval of a mean over them, and the words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixersweep.figures import frame, save
from mixersweep.report.caveats import CellStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Figure:
    """One figure: its title, its caption, which also describes it to a screen reader, and the matplotlib drawing.

    ``paths`` are its SVG and PNG files by format, empty where it was not written.
    """

    name: str
    title: str
    caption: str
    paths: dict[str, Path]
    drawing: Drawing = field(repr=False, compare=False)


def saved(name: str, title: str, out: Path | None, make: Callable[[Axes], str]) -> Figure:
    """Draw a figure with ``make``, which returns the caption; with ``out``, write ``name.svg`` and ``name.png`` there.

    The same numbers give the same bytes.
    """
    with frame(name, 6.4, 4.6) as drawing:
        axes = drawing.add_subplot()
        caption = make(axes)
        rows = _legends(drawing, axes)
        drawing.set_figheight(4.2 + 0.19 * rows)
        axes.set_title(title, fontsize=9, loc="left")
        paths = {} if out is None else {kind: out / f"{name}.{kind}" for kind in ("svg", "png")}
        save(drawing, title, list(paths.values()))
    return Figure(name, title, caption, paths, drawing)


def _legends(drawing: Drawing, axes: Axes) -> int:
    """Add the legends, own lines above the axes and published ones below; returns how many rows they take."""
    handles, labels = axes.get_legend_handles_labels()
    rows = 0
    positions: tuple[tuple[Literal["outside upper left", "outside lower left"], bool], ...]
    positions = (("outside upper left", False), ("outside lower left", True))
    for position, is_published in positions:
        chosen = [number for number, label in enumerate(labels) if label.startswith("published ") == is_published]
        if not chosen:
            continue
        columns = 2 if max(len(labels[number]) for number in chosen) > 18 else 3
        style: dict[str, Any] = {"handlelength": 3.6, "columnspacing": 1.4, "fontsize": 7.5 if is_published else 9}
        names = [labels[number] for number in chosen]
        drawing.legend([handles[number] for number in chosen], names, loc=position, ncols=columns, **style)
        rows += -(-len(chosen) // columns)
    return rows


FEWEST_SEEDS = 3
"""The fewest seeds with an interval."""


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of a mean over seeds by Student's t; None below ``FEWEST_SEEDS``."""
    from scipy.stats import t as student

    n = len(values)
    if n < FEWEST_SEEDS:
        return None
    half = float(student.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def describe_seeds(cells: Sequence[CellStatistics], without_bands: bool = False) -> str:
    """How many seeds each point has, and what its band is."""
    counts = sorted({len(cell.rows) for cell in cells})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"{seeds} seed{'s' if counts[-1] > 1 else ''} per point, each a dot"
    if without_bands:
        return text
    if counts[-1] >= FEWEST_SEEDS:
        return text + "; bands are 95% intervals of the mean over seeds (Student's t)"
    return text + ("; too few for a band" if counts[-1] > 1 else ", so there is no band")
