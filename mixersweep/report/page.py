"""``report.html``: one file that loads nothing, opens with the answer and lets a reader look at every run.

All text of runs (names, errors, settings) goes through ``html.escape``; the runs themselves travel as JSON in which
no ``<`` is left, and the script writes them as text, never as markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from mixersweep.figures.palette import DARKENED, PALETTE, SHAPES, css, looks_of
from mixersweep.report.answer import Answer, Question, answer
from mixersweep.report.axes import X_AXES, Y_AXES
from mixersweep.report.canvas import Figure
from mixersweep.report.figures import Gallery
from mixersweep.report.sheets import Sheet, sheets
from mixersweep.report.statistics import Statistics
from mixersweep.report.table import Table
from mixersweep.report.text import APART, counted, differs_said, versions_said
from mixersweep.runs.state import State

SHOWN = (
    "name model width tokens channels connections density parameters depth optim.lr seed train_loss "
    "validation_accuracy test_accuracy seconds"
).split()
"""The columns of the table of runs."""


def page(table: Table, all_statistics: Sequence[Statistics], gallery: Gallery, command: str, x: str, y: str) -> str:
    """The whole file as text."""
    main = all_statistics[0]
    said = answer(main)
    sections = [
        f"<h1>mixersweep report: {escape(said.name)}</h1>",
        f'<section class="answer" id="answer">{_answer(said)}</section>',
        f"<h2>What to bear in mind</h2>{_list(said.rest)}<p>{escape(counted(table, all_statistics))}</p>",
        _figures(gallery),
        _statistics(main),
        _EXPLORE,
        _RUNS,
        _unfinished(table),
        _apart(all_statistics),
        _recipe(main),
        _reproduce(table, command),
    ]
    parts = files("mixersweep.report")
    return Template((parts / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"mixersweep report: {main.comparison.name}"),
        colours=css(),
        css=(parts / "page.css").read_text(encoding="utf-8"),
        js=(parts / "page.js").read_text(encoding="utf-8"),
        body="\n".join(section for section in sections if section),
        data=_data(table, x, y),
    )


def _answer(said: Answer) -> str:
    """Caveats first, then a line a verdict, then the numbers."""
    first = _list(said.first, "caveats") if said.first else ""
    numbers = _sheet(said.numbers) if said.numbers.rows else ""
    return first + "".join(map(_question, said.questions)) + numbers


def _question(question: Question, level: str = "h2") -> str:
    lines = "".join(
        f'<li class="{verdict.found}"><span class="subject">{escape(verdict.subject)}:</span> '
        f"<strong>{escape(verdict.said)}</strong>"
        + (
            f'<span class="comma">,</span> <span class="because">{escape(verdict.because)}</span>'
            * bool(verdict.because)
        )
        + "</li>"
        for verdict in question.verdicts
    )
    told = f'<ul class="verdicts">{lines}</ul>' if lines else f"<p>{escape(question.unanswered)}</p>"
    return f"<{level}>{escape(question.asked)}</{level}>{told}"


def _list(texts: Iterable[str], name: str = "") -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul{f' class={name}' * bool(name)}>{items}</ul>"


def _figures(gallery: Gallery) -> str:
    drawn = "\n".join(_figure(figure, number == 0) for number, figure in enumerate(gallery.figures))
    left = "".join(f"<li>{escape(name)}: {escape(reason)}.</li>" for name, reason in gallery.left_out.items())
    missing = f'<p class="note">Not drawn:</p><ul class="note">{left}</ul>' if left else ""
    return f'<h2>Figures</h2><div class="figures">{drawn}</div>{missing}'


def _figure(figure: Figure, first: bool) -> str:
    """The SVG inside an image of its own, which turns dark with the page."""
    svg = figure.paths["svg"].read_text(encoding="utf-8")
    rules = "".join(
        f'[style*="fill: {light}"]{{fill:{dark} !important}}[style*="stroke: {light}"]{{stroke:{dark} !important}}'
        for light, dark in DARKENED.items()
    )
    style = f"<style>@media screen and (prefers-color-scheme: dark){{{rules}}}</style>"
    start = svg.index(">", svg.index("<svg")) + 1
    encoded = base64.b64encode((svg[:start] + style + svg[start:]).encode()).decode()
    told = escape(f"{figure.title}. {figure.caption}", quote=True)
    css = ' class="first"' if first else ""
    return (
        f'<figure{css} id="{escape(figure.name, quote=True)}">'
        f'<img alt="{told}" src="data:image/svg+xml;base64,{encoded}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _statistics(statistics: Statistics) -> str:
    return f"<h2>Statistics</h2>{''.join(_sheet(sheet) for sheet in sheets(statistics))}"


def _sheet(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col"{_number(column.number)}>{escape(column.header)}</th>' for column in sheet.columns)
    lines = "".join(
        "<tr>"
        + "".join(f"<td{_number(c.number)}>{escape(text)}</td>" for c, text in zip(sheet.columns, texts, strict=True))
        + "</tr>"
        for texts in sheet.texts
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(sheet.title, quote=True)}"><table>'
        f"<caption>{escape(sheet.title)}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
        f'<p class="note">{escape(sheet.note)}</p>'
    )


def _number(number: bool) -> str:
    return ' class="n"' if number else ""


_EXPLORE = """<section id="explore"><h2>Explore</h2>
<div class="controls"><label>x <select id="x"></select></label><label>y <select id="y"></select></label>
<label>colour <select id="colour"></select></label>
<label class="tick"><input type="checkbox" id="log" checked> x logarithmic</label></div>
<ul class="keys" id="keys"></ul><svg id="scatter" role="img" viewBox="0 0 960 480"></svg>
<p class="status" id="said" role="status">Point at a run to see it; click copies its command line.</p>
<p class="note" id="missing"></p></section>"""

_RUNS = """<h2 id="runs">Runs</h2>
<div class="controls"><label>containing <input type="search" id="filter" placeholder="words"></label>
<span class="note" id="count"></span></div>
<div class="wide" tabindex="0" role="region" aria-label="Completed runs"><table id="table">
<thead><tr id="head"></tr></thead><tbody id="body"></tbody></table></div>
<p class="status" id="said-too" aria-hidden="true"></p><button type="button" id="more">show more</button>
<noscript><p>The table needs JavaScript; runs.csv beside this page holds the same.</p></noscript>"""


def _unfinished(table: Table) -> str:
    if not table.others:
        return "<h2>What failed</h2><p>Every run that was found is completed.</p>"
    lines = "".join(
        f"<tr><td>{escape(str(row['name']))}</td><td>{escape(row['state'])}</td>"
        f'<td class="long">{escape(str(row["error"] or "–"))}</td></tr>'
        for row in table.others
    )
    counts = ", ".join(f"{n} {state}" for state, n in table.states.items() if state != State.COMPLETED)
    return (
        f"<h2>What failed, or is not done</h2><details{' open' if len(table.others) <= 20 else ''}>"
        f"<summary>{len(table.others)} without a result: {escape(counts)}</summary>"
        '<div class="wide" tabindex="0" role="region" aria-label="Runs without a result"><table id="failed"><thead><tr>'
        '<th scope="col">run</th><th scope="col">state</th><th scope="col">error</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div></details>"
    )


def _apart(all_statistics: Sequence[Statistics]) -> str:
    """The comparisons that are not mixed into the main one."""
    if len(all_statistics) < 2:
        return ""
    parts = []
    for statistics in all_statistics[1 : APART + 1]:
        comparison = statistics.comparison
        parts.append(
            f"<details><summary>{escape(comparison.name)}: {len(comparison.rows)} runs; differs in "
            f"{escape(differs_said(comparison))}</summary>"
            + "".join(_question(question, "h3") for question in answer(statistics).questions)
            + "".join(_sheet(sheet) for sheet in sheets(statistics))
            + "</details>"
        )
    more = len(all_statistics) - 1 - APART
    parts += [f"<p>And {more} more, all in statistics.json.</p>"] if more > 0 else []
    return f"<h2>Apart: what differs is not mixed</h2>{''.join(parts)}"


def _recipe(statistics: Statistics) -> str:
    held = {name: value for name, value in statistics.comparison.fixed.items() if value is not None}
    lists = [
        ("What all compared runs have in common", held),
        ("What they were made with", versions_said(statistics.comparison.rows)),
    ]
    tables = "".join(
        f"<details><summary>{escape(title)}</summary>"
        f"<div class='wide' tabindex='0' role='region' aria-label='{escape(title)}'><table><tbody>"
        + "".join(
            f'<tr><th scope="row">{escape(name)}</th><td class="long">{escape(_value(value))}</td></tr>'
            for name, value in values.items()
        )
        + "</tbody></table></div></details>"
        for title, values in lists
    )
    return f"<h2>Recipe and versions</h2>{tables}"


def _reproduce(table: Table, command: str) -> str:
    said = f"<p>This report:</p><pre>{escape(command)}</pre>"
    each = "Each run by the command beside it in the table; the same settings are the same experiment."
    where = f"<p>Only runs with <code>{escape(table.where)}</code> were read.</p>" if table.where else ""
    return f"<h2>To repeat it</h2>{said}{where}<p>{each}</p>"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data(table: Table, x: str, y: str) -> str:
    """The completed runs: a list of values a run, under ``columns``."""
    rows = table.completed
    plain = [
        name
        for name in table.columns
        if name not in ("run_dir", "error", "state", "schema_version")
        and all(isinstance(row.get(name), (int, float, str, bool, type(None))) for row in rows)
    ]
    varied = [name for name in plain if name in (*SHOWN, "command") or len({row.get(name) for row in rows}) > 1]
    models = sorted({row["model"] for row in rows})
    labels = {key: axis.label for key, axis in X_AXES.items()}
    labels |= {axis.key: axis.label.replace(" in %", "") for name, axis in Y_AXES.items() if name != "error"}
    content = {
        "columns": varied,
        "rows": [[row.get(name) for name in varied] for row in rows],
        "shown": [name for name in SHOWN if name in varied],
        "labels": {**labels, "optim.lr": "learning rate", "name": "run"},
        "models": {name: [look.colour, SHAPES[look.marker]] for name, look in looks_of(models).items()},
        "palette": PALETTE,
        "shapes": list(SHAPES.values())[: len(PALETTE)],
        "x": x,
        "y": Y_AXES[y].key,
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
