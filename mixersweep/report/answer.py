"""The answer of a report: the caveats that come first, a verdict on each claim, and the numbers below them.

Each verdict is no stronger than its test. One record, which the terminal, the page, Markdown and LaTeX show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixersweep.report import verdicts
from mixersweep.report.caveats import order_said
from mixersweep.report.claims import ALPHA, Pair
from mixersweep.report.objections import diverged_said
from mixersweep.report.recipe import PURPOSES, Cell, Comparison
from mixersweep.report.say import listed, many
from mixersweep.report.sheets import Sheet, number_sheet
from mixersweep.report.statistics import Statistics
from mixersweep.report.verdicts import Found, Verdict


@dataclass(frozen=True)
class Question:
    """One of the two questions: its verdicts, a line each, or else why there is none."""

    asked: str
    verdicts: list[Verdict]
    unanswered: str = ""

    @property
    def lines(self) -> list[str]:
        """What is answered, line by line."""
        return [verdict.line for verdict in self.verdicts] or [self.unanswered]


@dataclass(frozen=True)
class Answer:
    """What a report says of one comparison, in the order in which it is to be read.

    ``first`` are the caveats to know before any verdict, ``rest`` the others. ``numbers`` is the table that the
    verdicts rest on; its note says what the intervals are conditional on.
    """

    name: str
    first: list[str]
    width: Question
    structure: Question
    numbers: Sheet
    rest: list[str]

    @property
    def questions(self) -> tuple[Question, Question]:
        """Of width, and of structure."""
        return self.width, self.structure

    def __str__(self) -> str:
        """All but the rest, as plain text."""
        lines = [self.name, ""]
        lines += [*(f"! {text}" for text in self.first), ""] if self.first else []
        for question in self.questions:
            lines += [question.asked, *(f"  {line}" for line in question.lines), ""]
        if self.numbers.rows:
            lines += [*aligned(self.numbers), self.numbers.note]
        return "\n".join(lines).rstrip()


def answer(statistics: Statistics) -> Answer:
    """What the tests of a comparison say, of width and of structure."""
    comparison = statistics.comparison
    width, structure = _of_width(statistics), _of_structure(statistics)
    found = [*width.verdicts, *structure.verdicts]
    first = _first(statistics)
    kept = [text for text in statistics.warnings if text not in first]
    return Answer(
        comparison.name,
        first,
        width,
        structure,
        number_sheet([verdict.numbers for verdict in found], _conditions(statistics, found)),
        [*verdicts.particulars(found), residual_said(statistics), *kept],
    )


def _of_width(statistics: Statistics) -> Question:
    return Question(
        "Is wider better?",
        [verdicts.of_trend(trend, statistics.claims) for trend in statistics.trends],
        "No model was trained at two widths, so nothing is said of width.",
    )


def _of_structure(statistics: Statistics) -> Question:
    models = list(statistics.comparison.variants)
    if len(models) < 2:
        why = f"All runs are of one model ({models[0]}), so no structures are compared."
        return Question("Which model is better?", [], why)
    pairs = statistics.pairs
    return Question(
        f"Which model is better, {_equal(pairs)}?" if pairs else "Which model is better?",
        [verdicts.of_pair(pair, statistics.claims) for pair in pairs],
        "No two models have runs at equal targets, shape and seed, so no structures are compared.",
    )


def _equal(pairs: Sequence[Pair]) -> str:
    """What the two models of a pair have in common."""
    if pairs[0].at_best is None:
        return "at equal width, connections and seed"
    chose = list(dict.fromkeys(seed for pair in pairs for seed in pair.chosen_on))
    if not chose:
        return "at the best width of each, chosen on validation"
    return f"at the best width of each, chosen on validation of seeds {listed(chose)} and tested on others"


def _conditions(statistics: Statistics, found: Sequence[Verdict]) -> str:
    """What intervals and p take in, and what they are conditional on."""
    claims = [*statistics.trends, *statistics.pairs]
    known = [claim.effect for claim in claims if claim.effect.interval is not None]
    if not known:
        return "One seed each: there is no interval and no p."
    over = ["seeds"]
    over += ["test images"] if all(effect.over_seeds_and_images for effect in known) else []
    over += ["what else sets a width apart"] if statistics.between is not None else []
    given = "" if statistics.between is not None else ", given each width's learning rate and sizes"
    counted = f"; p by Holm over {many(statistics.claims, 'claim')}, decided at {ALPHA:g}" if statistics.claims else ""
    power = " What would show is shown 4 times in 5." if any(v.found is Found.NOT_SHOWN for v in found) else ""
    return (
        f"Points of test accuracy; 95% intervals over {listed(over)}{given}{counted}. n counts the runs of a trend, or "
        f"the pairs of runs of two models.{power}"
    )


def _first(statistics: Statistics) -> list[str]:
    """What of the runs themselves a reader has to know before any verdict."""
    comparison = statistics.comparison
    own: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        own.setdefault(cell[0], []).append(cell)
    rates = comparison.rates
    found = []
    unsearched = [model for model, cells in own.items() if not all(rates[cell].searched for cell in cells)]
    if unsearched:
        whose = "" if len(unsearched) == len(own) else f" of {listed(unsearched)}"
        found.append(f"learning rates{whose} were not searched")
    chose = [model for model, cells in own.items() if any(rates[cell].on_reported > 1 for cell in cells)]
    if chose:
        found.append(f"the reported seeds chose the learning rates of {listed(chose)}")
    if once := [name for name in PURPOSES if all(_drawn_once(comparison, cells, name) for cells in own.values())]:
        found.append(
            f"all seeds{' of a model' * (len(own) > 1)} share one {listed(once)}, of which nothing wider is said"
        )
    found += [diverged_said(cells, rates) for cells in own.values() if any(rates[cell].diverged for cell in cells)]
    return [*found, *order_said(statistics.cells)]


def _drawn_once(comparison: Comparison, cells: Sequence[Cell], purpose: str) -> bool:
    """Whether all runs of a model have one seed for this, whatever their seed."""
    name = f"seeds.{purpose}"
    settings = [{**row["settings"], **row.get("named_by", {})} for cell in cells for row in comparison.cells[cell]]
    values = {own.get(name) for own in settings}
    return len(values) == 1 and None not in values


def residual_said(statistics: Statistics) -> str:
    """The largest distance between what was asked and what integers made of it."""
    residual, row = statistics.residual
    if residual == 0:
        return "every compared network has exactly its target width and budget"
    return f"the largest residual between target and network is {residual:.2%} ({row['name']})"


def aligned(sheet: Sheet) -> list[str]:
    """A table as lines of plain text."""
    table: list[list[Any]] = [[column.header for column in sheet.columns], *sheet.texts]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    numeric = [column.number for column in sheet.columns]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(texts, widths, numeric, strict=True)
        ).rstrip()
        for texts in table
    ]
