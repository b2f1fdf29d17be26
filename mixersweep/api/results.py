"""Read runs as a table and compare them: the report as Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pandas import DataFrame

from mixersweep.report.build import Report, build
from mixersweep.report.build import write as write_report
from mixersweep.report.figures import Gallery, draw
from mixersweep.report.table import DERIVED, read
from mixersweep.runs.find import find_all
from mixersweep.runs.listing import value_names
from mixersweep.runs.where import parse_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_runs(*runs: str | Path, where: str | None = None) -> DataFrame:
    """Read runs as a table with a row for each run in any state: its record, its state and every setting.

    ``runs`` are directories of runs, or runs by path or name (default: where runs go); ``where`` is a condition such
    as ``"width>=1000 and model=sw_mlp"``. Raises ``UserError`` for a run that is not there or an invalid condition.
    """
    condition = None if where is None else parse_where(where, [*value_names(), *DERIVED])
    table = read(find_all(runs), condition, where or "")
    return DataFrame([{name: row.get(name) for name in table.columns} for row in table.rows], columns=table.columns)


def compare(
    *runs: str | Path,
    where: str | None = None,
    by: Sequence[str] = (),
    x: str = "width",
    y: str = "accuracy",
    published: bool = False,
) -> Findings:
    """Compare completed runs as ``mixersweep report`` does: the answer, its statistics, tables and figures.

    ``runs`` and ``where`` as for ``read_runs``; ``by`` are settings that name lines of their own, ``x`` and ``y`` the
    axes of the main figure, and ``published`` adds the papers' curves to it. Raises ``UserError`` for invalid
    arguments, and ``MixersweepError`` where no run is completed.
    """
    return Findings(build(find_all(runs), where, x=x, y=y, published=published, by=by), x, y, published)


@dataclass(frozen=True)
class Findings:
    """The result of comparing runs; a notebook shows it as a report in Markdown."""

    report: Report
    x: str
    y: str
    published: bool

    @property
    def answer(self) -> str:
        """The answer in words; no claim is stronger than its statistical test."""
        return self.report.answer

    @cached_property
    def tables(self) -> dict[str, DataFrame]:
        """The tables by name: ``runs`` has all runs found, others have accuracies, pairs, trends and so on."""
        return {name: DataFrame(rows) for name, rows in self.report.tables.items()}

    @property
    def statistics(self) -> dict[str, Any]:
        """All numbers as plain values, as ``statistics.json`` has them."""
        return self.report.statistics

    @property
    def figures(self) -> dict[str, Figure]:
        """The matplotlib figures by name, that of the answer first."""
        return {figure.name: figure.drawing for figure in self._gallery.figures}

    @property
    def captions(self) -> dict[str, str]:
        """What each figure shows, in words."""
        return {figure.name: figure.caption for figure in self._gallery.figures}

    @property
    def left_out(self) -> dict[str, str]:
        """The figures that these runs do not support, and why."""
        return self._gallery.left_out

    def write(self, out: str | Path) -> Path:
        """Write all files of the report into a directory and return the path of its page."""
        page = write_report(self.report, Path(out), self.x, self.y, self.published).page
        assert page is not None
        return page

    @cached_property
    def _gallery(self) -> Gallery:
        return draw(self.report.all_statistics, None, self.x, self.y, self.published)

    def __repr__(self) -> str:
        return f"<Findings: {self.answer}>"

    def _repr_markdown_(self) -> str:
        return self.report.markdown
