"""The report as text: counts of runs, differences between comparisons, and the whole as Markdown and as LaTeX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mixersweep.budget.terms import TARGETS
from mixersweep.report.answer import Answer, answer
from mixersweep.report.recipe import Comparison, Row
from mixersweep.report.say import join_words
from mixersweep.report.sheets import Sheet, sheets
from mixersweep.report.statistics import Statistics
from mixersweep.report.table import Table
from mixersweep.report.verdicts import Verdict

MOST_COMPARISONS = 12
"""The most further comparisons that are written out."""

MOST_NAMED = 20
"""The most unfinished runs that printed text names; ``runs.csv`` and the page have all."""


def count_runs(table: Table, all_statistics: Sequence[Statistics]) -> str:
    """Count the runs by state, and the completed ones by what they are used for."""
    states = ", ".join(f"{count} {state}" for state, count in table.states.items())
    text = f"{_runs(len(table.rows))}: {states}."
    main = all_statistics[0].comparison
    parts = [f"{len(main.rows)} are in the main comparison"]
    if main.searched:
        parts.append(f"{len(main.searched)} in its search for learning rates")
    mine = {row["run_dir"] for row in (*main.rows, *main.searched)}
    others = len(
        {r["run_dir"] for s in all_statistics[1:] for r in (*s.comparison.rows, *s.comparison.searched)} - mine
    )
    if others:
        parts.append(f"{others} in {len(all_statistics) - 1} other comparison{'s' * (len(all_statistics) > 2)}")
    text += f" Of the {len(table.completed)} completed, {join_words(parts)}."
    if table.repeated:
        text += f" {_runs(len(table.repeated))} found a second time elsewhere, and counted once."
    return text


def _runs(count: int) -> str:
    return f"{count:,} run{'s' * (count != 1)}"


def describe_difference(comparison: Comparison) -> str:
    """Describe how a comparison differs from the main one: ``depth=4 (not 2)``, ``ema=0.9 (not set)``.

    A setting that is null, or that one of the two has not, is not set there.
    """
    shown = {name: name.removesuffix("_target").replace("_", " ") for name in TARGETS}
    parts = []
    for name, (own, main) in comparison.differs.items():
        if own is None and name.endswith("_target"):
            continue
        label = shown.get(name, name)
        if own is None:
            parts.append(f"{label} not set (but {_value(main)})")
        else:
            parts.append(f"{label}={_value(own)} (not {'set' if main is None else _value(main)})")
    return ", ".join(parts)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def one_line(error: Any, length: int = 160) -> str:
    """The first line of an error, cut to ``length`` characters."""
    text = str(error or "").strip()
    first = text.splitlines()[0] if text else "no reason recorded"
    return first if len(first) <= length else first[: length - 1] + "…"


def unfinished_lines(table: Table) -> list[str]:
    """``name: state (error)`` for each run without a result, up to ``MOST_NAMED``, and the number of further ones."""
    rows = table.others
    named = [
        f"{row['name']}: {row['state']}" + (f" ({one_line(row['error'])})" if row["error"] else "") for row in rows
    ]
    return [
        *named[:MOST_NAMED],
        *([f"and {len(named) - MOST_NAMED} more, all in runs.csv"] if len(named) > MOST_NAMED else []),
    ]


def markdown(table: Table, all_statistics: Sequence[Statistics], command: str) -> str:
    """The report as Markdown: the answer, its caveats, and the tables."""
    main = all_statistics[0]
    summary = answer(main)
    lines = [f"# {summary.name}", ""]
    lines += [*(f"- **{text}**" for text in summary.first), ""] if summary.first else []
    lines += _markdown_verdicts(summary, "##")
    if summary.numbers.rows:
        lines += [*_markdown_table(summary.numbers), "", summary.numbers.note, ""]
    lines += ["## What to bear in mind", "", *(f"- {text}" for text in summary.rest), ""]
    lines += [count_runs(table, all_statistics), ""]
    for sheet in sheets(main):
        lines += [f"## {sheet.title}", ""]
        lines += _markdown_table(sheet)
        lines += ["", sheet.note, ""]
    for statistics in all_statistics[1 : MOST_COMPARISONS + 1]:
        lines += [
            f"## Another comparison: {statistics.comparison.name}",
            "",
            f"It differs from the main one in {describe_difference(statistics.comparison)}.",
            "",
            *_markdown_verdicts(answer(statistics), "###"),
        ]
        for sheet in sheets(statistics)[:3]:
            lines += [*_markdown_table(sheet), "", sheet.note, ""]
    if len(all_statistics) > MOST_COMPARISONS + 1:
        lines += [f"And {len(all_statistics) - MOST_COMPARISONS - 1} more comparisons, all in statistics.json.", ""]
    if table.others:
        lines += ["## Runs without a result", "", *(f"- {line}" for line in unfinished_lines(table)), ""]
    return "\n".join([*lines, f"Made by `{command}`.", ""])


def _markdown_verdicts(summary: Answer, level: str) -> list[str]:
    """The two questions as Markdown, a line for each verdict."""
    lines = []
    for question in summary.questions:
        lines += [f"{level} {question.asked}", ""]
        lines += [
            f"- {verdict.subject}: **{verdict.statement}**{', ' * bool(verdict.explanation)}{verdict.explanation}"
            for verdict in question.shown
        ] or [question.unanswered]
        lines.append("")
    return lines


def _markdown_table(sheet: Sheet) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if column.is_number else "---" for column in sheet.columns]
    return [row(column.header for column in sheet.columns), row(rule), *(row(texts) for texts in sheet.texts)]


_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}
_LATEX |= {
    "−": "$-$",
    "–": "--",
    "Ω": r"$\Omega$",
    "γ": r"$\gamma$",
    "·": r"$\cdot$",
    "<": "$<$",
    ">": "$>$",
    "≤": r"$\le$",
}


def latex(table: Table, all_statistics: Sequence[Statistics], command: str) -> str:
    """The report as LaTeX for an appendix (it needs booktabs and graphicx); special characters are escaped."""
    main = all_statistics[0]
    summary = answer(main)
    lines = [f"% {command}".replace("\n", " "), r"% needs \usepackage{booktabs,graphicx}"]
    lines += [rf"\paragraph{{{_tex(summary.name)}}}", _tex(count_runs(table, all_statistics)), ""]
    lines += _latex_items(map(_tex, summary.first))
    for question in summary.questions:
        lines += [rf"\paragraph{{{_tex(question.asked)}}}"]
        lines += _latex_items(map(_latex_verdict, question.shown)) or [_tex(question.unanswered), ""]
    if summary.numbers.rows:
        lines += _latex_table(
            summary.numbers, f"{summary.numbers.title}: {summary.name}. {summary.numbers.note}", here=True
        )
    lines += [r"\paragraph{What to bear in mind}"]
    lines += _latex_items(
        map(_tex, [*summary.rest, *(f"Without a result: {line}" for line in unfinished_lines(table))])
    )
    for statistics in all_statistics[: MOST_COMPARISONS + 1]:
        for sheet in sheets(statistics):
            caption = f"{sheet.title}: {statistics.comparison.name}. {sheet.note}"
            lines += _latex_table(sheet, caption)
    return "\n".join(lines)


def _latex_verdict(verdict: Verdict) -> str:
    because = f", {_tex(verdict.explanation)}" if verdict.explanation else ""
    return rf"{_tex(verdict.subject)}: \textbf{{{_tex(verdict.statement)}}}{because}"


def _latex_items(items: Iterable[str]) -> list[str]:
    """A LaTeX list; no lines where there are no items."""
    lines = [rf"\item {item}" for item in items]
    return [r"\begin{itemize}", *lines, r"\end{itemize}", ""] if lines else []


def _latex_table(sheet: Sheet, caption: str, here: bool = False) -> list[str]:
    """A LaTeX table as wide as the text on a page of floats, or with ``here`` a small one in the text."""
    columns = "".join("r" if column.is_number else "l" for column in sheet.columns)
    body = [" & ".join(map(_tex, texts)) + r" \\" for texts in sheet.texts]
    return [
        r"\begin{table}[ht]" if here else r"\begin{table}[p]",
        r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        *([] if here else [r"\resizebox{\textwidth}{!}{%"]),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(_tex(column.header) for column in sheet.columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}" if here else r"\end{tabular}}",
        r"\end{table}",
        "",
    ]


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def describe_versions(rows: Sequence[Row]) -> dict[str, str]:
    """Describe versions and environment of the compared runs: each distinct value, with its number of runs."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        groups = {**(row["versions"] or {}), **(row["environment"] or {}), "commit": row["git_commit"]}
        for name, value in groups.items():
            if value is not None:
                found.setdefault(name, Counter())[str(value)] += 1
    return {
        name: next(iter(counts))
        if len(counts) == 1
        else ", ".join(f"{value} ({n} runs)" for value, n in counts.most_common())
        for name, counts in found.items()
    }
