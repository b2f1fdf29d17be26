"""Show a report in a terminal, with the main figure drawn in characters; without a terminal, as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING

import numpy as np

from mixersweep.figures import ticked
from mixersweep.report.answer import Answer, answer
from mixersweep.report.axes import x_axis, y_axis
from mixersweep.report.build import Report
from mixersweep.report.figures import Artist, NotShown
from mixersweep.report.sheets import Sheet, accuracy_sheet
from mixersweep.report.text import count_runs, unfinished_lines
from mixersweep.report.verdicts import Finding

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = ("blue+", "orange+", "green+", "magenta+", "cyan+", "red+", "gray+")
MARKERS = "ox^*+#@%"
MARKS = {
    Finding.BETTER: ("▲", "bold green"),
    Finding.WORSE: ("▼", "bold red"),
    Finding.NOT_SHOWN: ("·", "bold"),
    Finding.NOT_CLAIMED: ("×", "bold yellow"),
    Finding.UNTESTED: ("·", "bold"),
}
"""The mark and colour of each kind of verdict; its words say the same."""

KEPT = ("model", "shape", "width", "parameters", "seeds", "test_accuracy", "standard_deviation")
"""The columns of the accuracy table that fit a terminal."""


def show(report: Report, x: str, y: str, stream: IO[str]) -> None:
    """Write the main figure, the answer, the accuracies and the unfinished runs to ``stream``."""
    from rich.console import Console

    console = Console(file=stream, highlight=False, soft_wrap=False)
    try:
        stream.write(curve(report, x, y, console.width, console.is_terminal) + "\n")
    except NotShown as reason:
        console.print(f"no curve: {reason}")
    summary = answer(report.all_statistics[0])
    _show_answer(console, summary)
    accuracies = accuracy_sheet(report.all_statistics[0])
    chosen = [column for column in accuracies.columns if column.key in KEPT]
    _show_sheet(console, replace(accuracies, columns=chosen, note=""))
    console.print("What to bear in mind", style="bold")
    unfinished = (f"without a result: {line}" for line in unfinished_lines(report.table))
    _show_lines(console, "-", [*summary.rest, *unfinished, count_runs(report.table, report.all_statistics)])


def _show_answer(console: Console, summary: Answer) -> None:
    """Print the main caveats, then a line for each verdict, then the numbers."""
    from rich.table import Table
    from rich.text import Text

    console.print(summary.name, style="bold", markup=False)
    _show_lines(console, "!", summary.first)
    for question in summary.questions:
        console.print()
        console.print(question.asked, style="bold", markup=False)
        grid = Table.grid(padding=(0, 1))
        for verdict in question.shown:
            mark, style = MARKS[verdict.finding]
            grid.add_row(
                Text(mark, style), Text(f"{verdict.subject}:"), Text(verdict.statement, style), verdict.explanation
            )
        console.print(grid if question.verdicts else question.unanswered)
    console.print()
    if summary.numbers.rows:
        _show_sheet(console, summary.numbers)


def _show_lines(console: Console, mark: str, texts: Iterable[str]) -> None:
    """Print each text on a line of its own, wrapped behind its mark."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for text in texts:
        grid.add_row(mark, Text(text))
    console.print(grid)


def _show_sheet(console: Console, sheet: Sheet) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=sheet.title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in sheet.columns:
        table.add_column(column.header, justify="right" if column.is_number else "left", no_wrap=column.is_number)
    for texts in sheet.texts:
        table.add_row(*map(Text, texts))
    console.print(table)
    if sheet.note:
        console.print(sheet.note, style="dim", markup=False)
    console.print()


def curve(report: Report, x: str, y: str, columns: int, colour: bool) -> str:
    """Draw the main figure in characters; raises ``NotShown`` where the runs do not support it."""
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
    scale = np.log2 if logarithmic else np.asarray
    for number, (name, points) in enumerate(lines.items()):
        xs = [float(scale(value)) for value, _ in points]
        ys = [float(np.mean([v for row in cell.rows if (v := artist.y.of(row)) is not None])) for _, cell in points]
        look = {"color": COLOURS[number % len(COLOURS)]}
        plotext.plot(xs, ys, marker="braille", **look)
        mark = MARKERS[number % len(MARKERS)]
        label = " ".join(part for part in (name[0], f"({name[1]})" if name[1] else "") if part)
        plotext.scatter(xs, ys, marker=mark, **look)
        legend.append(f"{mark} {label}")
    shown = _spaced_ticks([float(scale(value)) for value in values], columns)
    plotext.xticks([float(scale(values[i])) for i in shown], [ticked(values[i]) for i in shown])
    plotext.xlabel(axis.label)
    plotext.title(artist.y.label)
    text: str = plotext.build()
    plotext.clear_figure()
    return (text if colour else plotext.uncolorize(text)) + "\n" + "   ".join(legend)


def _spaced_ticks(positions: Sequence[float], columns: int) -> list[int]:
    """The indices of ticks whose labels do not overlap."""
    span = positions[-1] - positions[0] or 1.0
    kept = [0]
    for number in range(1, len(positions)):
        if (positions[number] - positions[kept[-1]]) / span * min(columns, 100) >= 9:
            kept.append(number)
    return kept
