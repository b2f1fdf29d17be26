"""The answer of a report: the main caveats, a verdict on each claim, and the numbers behind the verdicts.

Each verdict is no stronger than its test. The terminal, the page, Markdown and LaTeX all show this one record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixersweep.report import verdicts
from mixersweep.report.caveats import loss_order_caveats
from mixersweep.report.claims import ALPHA, Pair
from mixersweep.report.objections import describe_diverged
from mixersweep.report.recipe import PURPOSES, Cell, Comparison
from mixersweep.report.say import join_words, plural
from mixersweep.report.sheets import Sheet, number_sheet
from mixersweep.report.statistics import Statistics
from mixersweep.report.verdicts import Finding, Verdict


@dataclass(frozen=True)
class Question:
    """One of the two questions of a report: its verdicts, or why there are none."""

    asked: str
    verdicts: list[Verdict]
    unanswered: str = ""
    judged: str = "claims"

    @property
    def shown(self) -> list[Verdict]:
        """The verdicts to show, one line each, or a single one for all ``judged`` where none could be tested."""
        several = len(self.verdicts) > 1
        if several and all(verdict.finding is Finding.UNTESTED for verdict in self.verdicts):
            return [replace(self.verdicts[0], subject=f"all {len(self.verdicts)} {self.judged}")]
        return self.verdicts

    @property
    def lines(self) -> list[str]:
        """The answers, one line per verdict that is shown."""
        return [verdict.line for verdict in self.shown] or [self.unanswered]


@dataclass(frozen=True)
class Answer:
    """The answer of one comparison, its parts in the order of reading.

    ``first`` are the caveats to know before any verdict, ``rest`` the others. ``numbers`` are the numbers behind the
    verdicts, one row each, with a note on what their intervals and p-values account for.
    """

    name: str
    first: list[str]
    width: Question
    structure: Question
    numbers: Sheet
    rest: list[str]

    @property
    def questions(self) -> tuple[Question, Question]:
        """The questions on width and on structure."""
        return self.width, self.structure

    def __str__(self) -> str:
        """The answer as plain text, without ``rest``."""
        lines = [self.name, ""]
        lines += [*(f"! {text}" for text in self.first), ""] if self.first else []
        for question in self.questions:
            lines += [question.asked, *(f"  {line}" for line in question.lines), ""]
        if self.numbers.rows:
            lines += [*align(self.numbers), self.numbers.note]
        return "\n".join(lines).rstrip()


def answer(statistics: Statistics) -> Answer:
    """Answer the questions on width and on structure from the tests of a comparison."""
    comparison = statistics.comparison
    width, structure = _width_question(statistics), _structure_question(statistics)
    found = [*width.verdicts, *structure.verdicts]
    first = _leading_caveats(statistics)
    kept = [text for text in statistics.warnings if text not in first]
    return Answer(
        comparison.name,
        first,
        width,
        structure,
        number_sheet([verdict.numbers for verdict in found], _describe_intervals(statistics, found)),
        [*verdicts.reasons_in_full(found), describe_residual(statistics), *kept],
    )


def _width_question(statistics: Statistics) -> Question:
    return Question(
        "Is wider better?",
        [verdicts.judge_trend(trend, statistics.claims) for trend in statistics.trends],
        "No model was trained at two widths, so there is no answer on width.",
        judged="models",
    )


def _structure_question(statistics: Statistics) -> Question:
    models = list(statistics.comparison.variants)
    if len(models) < 2:
        why = f"All runs are of one model ({models[0]}), so no structures are compared."
        return Question("Which model is better?", [], why)
    pairs = statistics.pairs
    return Question(
        f"Which model is better, {_describe_matching(pairs)}?" if pairs else "Which model is better?",
        [verdicts.judge_pair(pair, statistics.claims) for pair in pairs],
        "No two models have runs of equal target width and budget, shape and seed, so no structures are compared.",
        judged="pairs of models",
    )


def _describe_matching(pairs: Sequence[Pair]) -> str:
    """Describe on what basis the two models of a pair are compared."""
    if pairs[0].at_best is None:
        return "at equal width, connections and seed"
    chose = list(dict.fromkeys(seed for pair in pairs for seed in pair.chosen_on))
    if not chose:
        return "at the best width of each, chosen on validation"
    return f"at the best width of each, chosen on validation of seeds {join_words(chose)} and tested on others"


def _describe_intervals(statistics: Statistics, found: Sequence[Verdict]) -> str:
    """Describe what the intervals and p-values account for, and what they take as given."""
    claims = [*statistics.trends, *statistics.pairs]
    known = [claim.effect for claim in claims if claim.effect.interval is not None]
    if not known:
        return "One seed each: there is no interval and no p."
    over = ["seeds"]
    over += ["test images"] if all(effect.over_seeds_and_images for effect in known) else []
    over += ["other effects of single widths"] if statistics.cell_effect is not None else []
    given = "" if statistics.cell_effect is not None else ", taking each width's learning rate and sizes as given"
    count = plural(statistics.claims, "claim")
    tested = f"; p corrected by Holm for {count}, significant up to {ALPHA:g}" if statistics.claims else ""
    has_power = any(verdict.finding is Finding.NOT_SHOWN for verdict in found)
    power = " A detectable effect would be shown 4 times in 5." if has_power else ""
    return (
        f"Percentage points of test accuracy; 95% intervals over {join_words(over)}{given}{tested}. n counts the runs "
        f"of a trend, or the pairs of runs of two models.{power}"
    )


def _leading_caveats(statistics: Statistics) -> list[str]:
    """The caveats to know before any verdict: tuning, what was drawn only once, runs that diverged, training loss."""
    comparison = statistics.comparison
    own: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        own.setdefault(cell[0], []).append(cell)
    rates = comparison.rates
    found = []
    unsearched = [model for model, cells in own.items() if not all(rates[cell].is_searched for cell in cells)]
    if unsearched:
        whose = "" if len(unsearched) == len(own) else f" of {join_words(unsearched)}"
        found.append(f"learning rates{whose} were not searched")
    chose = [model for model, cells in own.items() if any(rates[cell].rates_of_reported > 1 for cell in cells)]
    if chose:
        found.append(f"the reported seeds chose the learning rates of {join_words(chose)}")
    if once := [name for name in PURPOSES if all(_drawn_once(comparison, cells, name) for cells in own.values())]:
        of_model = " of a model" * (len(own) > 1)
        found.append(f"all seeds{of_model} share one draw of {join_words(once)}: the answer holds for that draw alone")
    found += [describe_diverged(cells, rates) for cells in own.values() if any(rates[cell].diverged for cell in cells)]
    return [*found, *loss_order_caveats(statistics.cells)]


def _drawn_once(comparison: Comparison, cells: Sequence[Cell], purpose: str) -> bool:
    """Whether all runs of a model have the same explicit seed for a purpose, whatever their own seed."""
    name = f"seeds.{purpose}"
    settings = [{**row["settings"], **row.get("named_by", {})} for cell in cells for row in comparison.cells[cell]]
    values = {own.get(name) for own in settings}
    return len(values) == 1 and None not in values


def describe_residual(statistics: Statistics) -> str:
    """Describe the largest deviation of a network from its targets, which rounding to integers leaves."""
    residual, row = statistics.residual
    if residual == 0:
        return "every compared network has exactly its target width and budget"
    return f"the largest deviation of a network from its target width or budget is {residual:.2%} ({row['name']})"


def align(sheet: Sheet) -> list[str]:
    """Format a table as lines of plain text with aligned columns."""
    table: list[list[Any]] = [[column.header for column in sheet.columns], *sheet.texts]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    numeric = [column.is_number for column in sheet.columns]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(texts, widths, numeric, strict=True)
        ).rstrip()
        for texts in table
    ]
