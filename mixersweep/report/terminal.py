"""The main curve and its table in a terminal; without a terminal, the same in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np

from mixersweep.report.axes import x_axis, y_axis
from mixersweep.report.build import Report
from mixersweep.report.canvas import ticked
from mixersweep.report.figures import Artist, NotShown
from mixersweep.report.sheets import sheets
from mixersweep.report.text import counted, residual_said, unfinished_lines

COLOURS = ("blue+", "orange+", "green+", "magenta+", "cyan+", "red+", "gray+")
MARKERS = "ox^*+#@%"
KEPT = {
    "accuracy": ("model", "shape", "width", "parameters", "seeds", "test_accuracy", "standard_deviation"),
    "pairs": ("first", "second", "pairs", "difference", "interval_over_seeds_and_images", "p_holm", "verdict"),
    "trends": ("model", "branch", "narrowest", "widest", "rise", "interval_over_seeds_and_images", "p_holm", "verdict"),
}
"""The columns that a terminal has room for."""


def show(report: Report, x: str, y: str, stream: IO[str]) -> None:
    """Write the curve, the answer, the table and what is not completed to ``stream``."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=stream, highlight=False, soft_wrap=False)
    try:
        stream.write(curve(report, x, y, console.width, console.is_terminal) + "\n")
    except NotShown as reason:
        console.print(f"no curve: {reason}")
    console.print(report.answer, markup=False)
    main = report.all_statistics[0]
    for sheet in (sheet for sheet in sheets(main) if sheet.name in KEPT):
        columns = [number for number, column in enumerate(sheet.columns) if column.key in KEPT[sheet.name]]
        table = Table(title=sheet.title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for number in columns:
            column = sheet.columns[number]
            table.add_column(column.header, justify="right" if column.number else "left", no_wrap=not column.number)
        for texts in sheet.texts:
            table.add_row(*(texts[number] for number in columns))
        console.print()
        console.print(table)
    console.print()
    lines = [counted(report.table, report.all_statistics), residual_said(main), *main.warnings]
    for line in [*lines, *(f"without a result: {line}" for line in unfinished_lines(report.table))]:
        console.print(line, markup=False)


def curve(report: Report, x: str, y: str, columns: int, colour: bool) -> str:
    """The main figure in characters; raises ``NotShown`` where the table does not support it."""
    import plotext

    axis = x_axis(x)
    artist = Artist(report.all_statistics, y_axis(y))
    lines = artist.lines(x)
    plotext.clear_figure()
    plotext.plot_size(min(columns, 100), 22)
    plotext.theme("clear")
    values = sorted({value for points in lines.values() for value, _ in points})
    logarithmic = axis.log > 0 and values[0] > 0
    legend: list[str] = []
    place = np.log2 if logarithmic else np.asarray
    for number, (name, points) in enumerate(lines.items()):
        xs = [float(place(value)) for value, _ in points]
        ys = [float(np.mean([v for row in cell.rows if (v := artist.y.of(row)) is not None])) for _, cell in points]
        look = {"color": COLOURS[number % len(COLOURS)]}
        plotext.plot(xs, ys, marker="braille", **look)
        mark = MARKERS[number % len(MARKERS)]
        label = " ".join(part for part in (name[0], f"({name[1]})" if name[1] else "") if part)
        plotext.scatter(xs, ys, marker=mark, **look)
        legend.append(f"{mark} {label}")
    shown = _apart([float(place(value)) for value in values], columns)
    plotext.xticks([float(place(values[i])) for i in shown], [ticked(values[i]) for i in shown])
    plotext.xlabel(axis.label)
    plotext.title(artist.y.label)
    text: str = plotext.build()
    plotext.clear_figure()
    return (text if colour else plotext.uncolorize(text)) + "\n" + "   ".join(legend)


def _apart(places: Sequence[float], columns: int) -> list[int]:
    """The ticks whose labels do not run into each other."""
    span = places[-1] - places[0] or 1.0
    kept = [0]
    for number in range(1, len(places)):
        if (places[number] - places[kept[-1]]) / span * min(columns, 100) >= 9:
            kept.append(number)
    return kept
