"""Draw test accuracy by structure, beside the time of a training step, grouped by sharing of weights and by rank.

The groups are those of Potapczynski et al. 2024 (arXiv 2410.02117, section 3): a layer of width m has m^ω multiply-adds
for each weight, where ω is the exponent of parameter sharing, and a rank of m^ψ. There the exponents are limits for
large m; here they are logarithms to base m of what a network of one width has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixersweep.families import matrix_rank_of
from mixersweep.figures import INK, frame, save, scaled
from mixersweep.figures.palette import BLUE, GREY, ORANGE, VIOLET
from mixersweep.report.axes import Axis
from mixersweep.report.canvas import Figure, describe_seeds, interval_of_mean
from mixersweep.report.caveats import CellStatistics
from mixersweep.report.recipe import Row
from mixersweep.report.statistics import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 6
"""The fewest models, or variants of them, of a comparison that is drawn by structure."""

Group = tuple[bool, bool]
"""Whether weights are shared, and whether the rank is full."""

GROUPS: dict[Group, tuple[str, str]] = {
    (False, True): ("a weight for each connection, full rank", BLUE),
    (True, True): ("shared weights, full rank", ORANGE),
    (False, False): ("a weight for each connection, low rank", GREY),
    (True, False): ("shared weights, low rank", VIOLET),
}
"""The heading and the colour of each group, in their order from above."""


def exponents(row: Row) -> tuple[float, float]:
    """The exponents ω of sharing and ψ of rank of a run's mixing layers."""
    base = math.log(max(2, row["width"]))
    sharing = row["total_connections"] / row["mixing_parameters"]
    return math.log(sharing) / base, math.log(
        matrix_rank_of(row["model"], row["width"], round(row["connections"]))
    ) / base


def draw_structures(statistics: Statistics, y: Axis, name: str, out: Path | None) -> Figure:
    """Draw a row for each model and width of a comparison; with ``out``, write ``name.svg`` and ``name.png`` there."""
    title = f"By structure: {statistics.comparison.name}"
    groups = _grouped(statistics.cells, y)
    rows = sum(1 + sum(map(len, variants)) for variants in groups.values())
    with frame(name, 8.0, 1.2 + 0.19 * rows) as drawing:
        left, right = drawing.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_rows(left, right, groups, y)
        drawing.suptitle(title, fontsize=9, x=0.01, ha="left")
        paths = {} if out is None else {kind: out / f"{name}.{kind}" for kind in ("svg", "png")}
        save(drawing, title, list(paths.values()))
    return Figure(name, title, _caption(statistics.cells, y), paths, drawing)


def _grouped(cells: Sequence[CellStatistics], y: Axis) -> dict[Group, list[list[CellStatistics]]]:
    """The cells of each variant by width, in their groups; variants with the highest value first."""
    variants: dict[str, list[CellStatistics]] = defaultdict(list)
    for cell in cells:
        if y.of(cell.mean) is not None:
            variants[cell.cell[0]].append(cell)
    found: dict[Group, list[list[CellStatistics]]] = {group: [] for group in GROUPS}
    for own in variants.values():
        omega, psi = exponents(own[0].rows[0])
        found[omega > 1e-3, psi > 1 - 1e-3].append(sorted(own, key=lambda cell: cell.mean["width"]))
    for group in found.values():
        group.sort(key=lambda own: -max(y.of(cell.mean) or -math.inf for cell in own))
    return {group: own for group, own in found.items() if own}


def _draw_rows(left: Axes, right: Axes, groups: dict[Group, list[list[CellStatistics]]], y: Axis) -> None:
    """Draw values on the left and times on the right, with names and widths beside the rows."""
    height, ticks, times = 0.0, [], []
    for group, variants in groups.items():
        heading, colour = GROUPS[group]
        cells = [cell for own in variants for cell in own]
        _annotate(left, height, heading, -5, color=colour, fontsize=9)
        _annotate(left, height, f"{_range('ω', cells, 0)},  {_range('ψ', cells, 1)}", 5, color=colour, fontsize=9)
        for own in variants:
            _annotate(left, height + 1, own[0].cell[0], -58, fontsize=8.5)
            for cell in own:
                height += 1
                ticks.append((height, f"{cell.mean['width']:,.0f}"))
                _draw_values(left, height, cell, y, colour)
                if (time := _milliseconds(cell)) is not None:
                    times.append(time)
                    right.plot([time], [height], "o", color=colour, markersize=5.5)
        height += 1.4
    ticks[0] = (ticks[0][0], f"m = {ticks[0][1]}")
    left.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8.5)
    left.set_ylim(height - 0.7, -0.7)
    left.set_xlabel(y.label)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    right.tick_params(axis="y", labelleft=False)
    scaled(right, "training step in ms", times or [1], log=10)


def _annotate(axes: Axes, height: float, text: str, points: float, **style: Any) -> None:
    """Write beside the left edge of the axes: so many points right of it, or left of it where they are negative."""
    side = "left" if points > 0 else "right"
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(text, (0, height), xytext=(points, 0), ha=side, va="center", **where, **style)


def _draw_values(axes: Axes, height: float, cell: CellStatistics, y: Axis, colour: str) -> None:
    """Draw the mean of a cell with its interval, and each run as a dot."""
    values = [value for row in cell.rows if (value := y.of(row)) is not None]
    axes.plot(values, [height] * len(values), "o", color=colour, markersize=2.5, alpha=0.45, zorder=3)
    if (interval := interval_of_mean(values)) is not None:
        axes.plot(interval, [height, height], color=colour, linewidth=1.6, zorder=2)
    axes.plot([np.mean(values)], [height], "o", color=colour, markersize=5.5, zorder=4)
    if not cell.is_claimable:
        axes.plot([np.mean(values)], [height], "x", color=INK, markersize=8, zorder=5)


def _milliseconds(cell: CellStatistics) -> float | None:
    """The median time of a training step over the runs of a cell, in milliseconds."""
    speeds = [row["settings"]["batch_size"] / row["images_per_second"] for row in cell.rows if row["images_per_second"]]
    return 1000 * float(np.median(speeds)) if speeds else None


def _range(symbol: str, cells: Sequence[CellStatistics], which: int) -> str:
    """``ω = 0.29 to 0.35``: an exponent over all cells of a group."""
    found = sorted(exponents(cell.rows[0])[which] for cell in cells)
    low, high = (f"{abs(round(value, 2)):g}" for value in (found[0], found[-1]))
    return f"{symbol} = {low}" + (f" to {high}" if high != low else "")


def _caption(cells: Sequence[CellStatistics], y: Axis) -> str:
    rows = [row for cell in cells for row in cell.rows]
    devices = ", ".join(sorted({str((row["environment"] or {}).get("device_kind", "unknown")) for row in rows}))
    packed = ", of whole packs where runs were packed" if any((row.get("pack_size") or 1) > 1 for row in rows) else ""
    crossed = (
        "" if all(cell.is_claimable for cell in cells) else " Crossed out: mean fan-in below 4, in no test or trend."
    )
    return (
        f"{y.label[0].upper()}{y.label[1:]} by structure and width m; {describe_seeds(cells)}. A layer has m^ω "
        "multiply-adds for each weight, and a rank of m^ψ (of low_rank without its diagonal). Right: batch size over "
        f"the images per second of the records, median over runs, on {devices}{packed}; as they trained, beside "
        f"whatever else the machine did.{crossed}"
    )
