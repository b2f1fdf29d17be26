"""Build a report from run directories: as objects, and as files on disk."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mixersweep.errors import UserError
from mixersweep.report.answer import answer
from mixersweep.report.recipe import comparisons, named_by
from mixersweep.report.sheets import sheets
from mixersweep.report.statistics import Statistics, statistics
from mixersweep.report.table import DERIVED, Row, Table, collect, write_csv, write_parquet
from mixersweep.report.text import count_runs, latex, markdown
from mixersweep.runs.files import write_json, write_text
from mixersweep.runs.listing import value_names
from mixersweep.runs.state import State
from mixersweep.runs.where import parse_where


@dataclass(frozen=True)
class Report:
    """A finished report: the answer, its statistics and tables and, where it was written, the paths of its files.

    ``answer`` is the verdicts as text, ``tables`` the sheets by name (``runs`` is every run that was found; those of
    further comparisons end in ``-2``, ``-3``, ...), ``statistics`` all numbers as plain JSON values, ``figures`` the
    paths by figure and format (``figures["width_vs_accuracy"]["png"]``), ``left_out`` the figures that the runs do not
    support, with the reason. ``page`` is the path of ``report.html``. Without an ``out`` there are no files.
    """

    answer: str
    table: Table
    all_statistics: list[Statistics]
    statistics: dict[str, Any]
    command: str
    figures: dict[str, dict[str, Path]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    page: Path | None = None

    @cached_property
    def tables(self) -> dict[str, list[Row]]:
        """The sheets by name, and ``runs``."""
        columns = self.table.columns
        tables: dict[str, list[Row]] = {"runs": [{n: row.get(n) for n in columns} for row in self.table.rows]}
        for number, one in enumerate(self.all_statistics, start=1):
            for sheet in sheets(one):
                tables[sheet.name if number == 1 else f"{sheet.name}-{number}"] = sheet.rows
        return tables

    @property
    def markdown(self) -> str:
        """The report as Markdown."""
        return markdown(self.table, self.all_statistics, self.command)

    @property
    def latex(self) -> str:
        """The report as LaTeX, for an appendix."""
        return latex(self.table, self.all_statistics, self.command)


def build(
    runs_dirs: Sequence[Path],
    where: str | None = None,
    out: Path | None = None,
    *,
    x: str = "width",
    y: str = "accuracy",
    published: bool = False,
    by: Sequence[str] = (),
) -> Report:
    """Read and compare runs and, where ``out`` is given, draw and write the report; equal runs give equal numbers.

    ``runs_dirs`` are directories of runs, or runs; ``where`` is a condition on runs, ``x`` and ``y`` are the axes of
    the main figure, and ``published`` adds the papers' curves to it. Runs that differ in a setting of ``by`` become
    separate lines, as those of different models do. Raises ``UserError`` for a directory, condition, axis or setting
    that does not exist, and ``MixersweepError`` where no run is completed.
    """
    from mixersweep.report.axes import x_axis, y_axis

    x_axis(x), y_axis(y)
    condition = None if where is None else parse_where(where, [*value_names(), *DERIVED])
    table = collect(runs_dirs, condition, where or "")
    named = named_by(table.rows, by)
    completed = [row for row in named if row["state"] == State.COMPLETED]
    others = [row for row in named if row["state"] != State.COMPLETED]
    all_statistics = statistics(comparisons(completed, others))
    report = Report(
        str(answer(all_statistics[0])),
        table,
        all_statistics,
        statistics_document(table, all_statistics),
        command_line(runs_dirs, where, out, x, y, published, by),
    )
    return report if out is None else write(report, Path(out), x, y, published)


def write(report: Report, out: Path, x: str, y: str, published: bool) -> Report:
    """Draw the figures and write all files into ``out``, each completely or not at all."""
    from mixersweep.report.figures import draw
    from mixersweep.report.page import page

    try:
        out.mkdir(parents=True, exist_ok=True)
        gallery = draw(report.all_statistics, out, x, y, published)
        write_csv(report.table, out / "runs.csv")
        write_parquet(report.table, out / "runs.parquet")
        write_json(out / "statistics.json", report.statistics)
        write_text(out / "report.md", report.markdown)
        write_text(out / "report.tex", report.latex)
        write_text(out / "report.html", page(report.table, report.all_statistics, gallery, report.command, x, y))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return dataclasses.replace(
        report,
        figures={figure.name: figure.paths for figure in gallery.figures},
        captions={figure.name: figure.caption for figure in gallery.figures},
        left_out=gallery.left_out,
        page=out / "report.html",
    )


def command_line(
    runs_dirs: Sequence[Path], where: str | None, out: Path | None, x: str, y: str, published: bool, by: Sequence[str]
) -> str:
    """The command line that makes this report."""
    words = ["mixersweep", "report", *map(str, runs_dirs)]
    words += ["--where", where] if where is not None else []
    words += ["--by", ",".join(by)] if by else []
    words += ["--out", str(out)] if out is not None else []
    words += ["--x", x] if x != "width" else []
    words += ["--y", y] if y != "accuracy" else []
    return shlex.join([*words, *(["--published"] if published else [])])


def statistics_document(table: Table, all_statistics: Sequence[Statistics]) -> dict[str, Any]:
    """The content of ``statistics.json``: all numbers of a report as JSON values."""
    return {
        "schema_version": 1,
        "answer": str(answer(all_statistics[0])),
        "runs": count_runs(table, all_statistics),
        "states": table.states,
        "comparisons": [
            {
                "name": one.comparison.name,
                "fixed": one.comparison.fixed,
                "differs": {name: list(values) for name, values in one.comparison.differs.items()},
                "compared_runs": len(one.comparison.rows),
                "test_images": one.images,
                "claims": one.claims,
                "draws": one.draws,
                "cell_effect": None
                if one.cell_effect is None
                else {
                    "standard_deviation": one.cell_effect.variance**0.5,
                    "degrees_of_freedom": one.cell_effect.freedom,
                },
                "largest_residual": one.residual[0],
                "largest_residual_run": one.residual[1]["name"],
                "warnings": one.warnings,
                **{sheet.name: sheet.rows for sheet in sheets(one)},
            }
            for one in all_statistics
        ],
    }
