"""The report as text: what was counted, what differs, and the whole of it as Markdown and as LaTeX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mixersweep.budget.terms import TARGETS
from mixersweep.report.answer import Answer, answer
from mixersweep.report.recipe import Comparison, Row
from mixersweep.report.say import listed
from mixersweep.report.sheets import Sheet, sheets
from mixersweep.report.statistics import Statistics
from mixersweep.report.table import Table
from mixersweep.report.verdicts import Verdict

APART = 12
"""How many further comparisons are written out."""

NAMED = 20
"""How many unfinished runs a printed text names; ``runs.csv`` and the page have all."""


def counted(table: Table, all_statistics: Sequence[Statistics]) -> str:
    """How many runs there are, and where each of them went."""
    states = ", ".join(f"{count} {state}" for state, count in table.states.items())
    said = f"{_runs(len(table.rows))}: {states}."
    main = all_statistics[0].comparison
    parts = [f"{len(main.rows)} in the main comparison"]
    if main.searched:
        parts.append(f"{len(main.searched)} of it at other learning rates or of the seeds that chose them")
    mine = {row["run_dir"] for row in (*main.rows, *main.searched)}
    others = len(
        {r["run_dir"] for s in all_statistics[1:] for r in (*s.comparison.rows, *s.comparison.searched)} - mine
    )
    if others:
        parts.append(f"{others} in {len(all_statistics) - 1} other comparison{'s' * (len(all_statistics) > 2)}")
    said += f" Of the {len(table.completed)} completed, {listed(parts)}."
    if table.repeated:
        said += f" {_runs(len(table.repeated))} found a second time elsewhere, and counted once."
    return said


def _runs(count: int) -> str:
    return f"{count:,} run{'s' * (count != 1)}"


def differs_said(comparison: Comparison) -> str:
    """How a comparison differs from the main one: ``depth=4 (not 2)``."""
    shown = {name: name.removesuffix("_target").replace("_", " ") for name in TARGETS}
    parts = []
    for name, (own, main) in comparison.differs.items():
        if own is None and name.endswith("_target"):
            continue
        parts.append(f"{shown.get(name, name)}={_value(own)} (not {_value(main)})")
    return ", ".join(parts)


def _value(value: Any) -> str:
    if value is None:
        return "set"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def one_line(error: Any, length: int = 160) -> str:
    """The first line of an error."""
    text = str(error or "").strip()
    first = text.splitlines()[0] if text else "no reason recorded"
    return first if len(first) <= length else first[: length - 1] + "…"


def unfinished_lines(table: Table) -> list[str]:
    """``name: state (error)`` for the first runs without a result, and how many more there are."""
    rows = table.others
    named = [
        f"{row['name']}: {row['state']}" + (f" ({one_line(row['error'])})" if row["error"] else "") for row in rows
    ]
    return [*named[:NAMED], *([f"and {len(named) - NAMED} more, all in runs.csv"] if len(named) > NAMED else [])]


def markdown(table: Table, all_statistics: Sequence[Statistics], command: str) -> str:
    """The report as Markdown: the answer, what stands against it, and the tables."""
    main = all_statistics[0]
    said = answer(main)
    lines = [f"# {said.name}", ""]
    lines += [*(f"- **{text}**" for text in said.first), ""] if said.first else []
    lines += _markdown_verdicts(said, "##")
    if said.numbers.rows:
        lines += [*_markdown_table(said.numbers), "", said.numbers.note, ""]
    lines += ["## What to bear in mind", "", *(f"- {text}" for text in said.rest), ""]
    lines += [counted(table, all_statistics), ""]
    for sheet in sheets(main):
        lines += [f"## {sheet.title}", ""]
        lines += _markdown_table(sheet)
        lines += ["", sheet.note, ""]
    for statistics in all_statistics[1 : APART + 1]:
        lines += [
            f"## Apart: {statistics.comparison.name}",
            "",
            f"Differs in {differs_said(statistics.comparison)}.",
            "",
            *_markdown_verdicts(answer(statistics), "###"),
        ]
        for sheet in sheets(statistics)[:3]:
            lines += [*_markdown_table(sheet), "", sheet.note, ""]
    if len(all_statistics) > APART + 1:
        lines += [f"And {len(all_statistics) - APART - 1} more comparisons, all in statistics.json.", ""]
    if table.others:
        lines += ["## Without a result", "", *(f"- {line}" for line in unfinished_lines(table)), ""]
    return "\n".join([*lines, f"Made by `{command}`.", ""])


def _markdown_verdicts(said: Answer, level: str) -> list[str]:
    """The two questions, with a line a verdict."""
    lines = []
    for question in said.questions:
        lines += [f"{level} {question.asked}", ""]
        lines += [
            f"- {verdict.subject}: **{verdict.said}**{', ' * bool(verdict.because)}{verdict.because}"
            for verdict in question.verdicts
        ] or [question.unanswered]
        lines.append("")
    return lines


def _markdown_table(sheet: Sheet) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if column.number else "---" for column in sheet.columns]
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
    """The same for an appendix (packages booktabs and graphicx); what cannot be typed is escaped."""
    main = all_statistics[0]
    said = answer(main)
    lines = [f"% {command}".replace("\n", " "), r"% needs \usepackage{booktabs,graphicx}"]
    lines += [rf"\paragraph{{{_tex(said.name)}}}", _tex(counted(table, all_statistics)), ""]
    lines += _latex_items(map(_tex, said.first))
    for question in said.questions:
        lines += [rf"\paragraph{{{_tex(question.asked)}}}"]
        lines += _latex_items(map(_latex_verdict, question.verdicts)) or [_tex(question.unanswered), ""]
    if said.numbers.rows:
        lines += _latex_table(said.numbers, f"{said.numbers.title}: {said.name}. {said.numbers.note}", here=True)
    lines += [r"\paragraph{What to bear in mind}"]
    lines += _latex_items(map(_tex, [*said.rest, *(f"Without a result: {line}" for line in unfinished_lines(table))]))
    for statistics in all_statistics[: APART + 1]:
        for sheet in sheets(statistics):
            caption = f"{sheet.title}: {statistics.comparison.name}. {sheet.note}"
            lines += _latex_table(sheet, caption)
    return "\n".join(lines)


def _latex_verdict(verdict: Verdict) -> str:
    because = f", {_tex(verdict.because)}" if verdict.because else ""
    return rf"{_tex(verdict.subject)}: \textbf{{{_tex(verdict.said)}}}{because}"


def _latex_items(items: Iterable[str]) -> list[str]:
    """A list; none where nothing is in it."""
    lines = [rf"\item {item}" for item in items]
    return [r"\begin{itemize}", *lines, r"\end{itemize}", ""] if lines else []


def _latex_table(sheet: Sheet, caption: str, here: bool = False) -> list[str]:
    """A table as wide as the text on a page of floats, or a small one ``here``."""
    columns = "".join("r" if column.number else "l" for column in sheet.columns)
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


def versions_said(rows: Sequence[Row]) -> dict[str, str]:
    """What the compared runs were made with: each distinct value and how many runs have it."""
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
