"""Write ``report.html``: one file that loads nothing, opens with the answer and lets a reader explore every run.

All text from runs (names, errors, settings) is escaped with ``html.escape``. The runs themselves are embedded as JSON
without any ``<``, which the script inserts as text, never as markup.
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
from mixersweep.report.text import MOST_COMPARISONS, count_runs, describe_difference, describe_versions
from mixersweep.runs.state import State

SHOWN = (
    "name model width tokens channels connections density parameters depth optim.lr seed train_loss "
    "validation_accuracy test_accuracy seconds"
).split()
"""The columns of the table of runs."""


def page(table: Table, all_statistics: Sequence[Statistics], gallery: Gallery, command: str, x: str, y: str) -> str:
    """The whole page as HTML."""
    main = all_statistics[0]
    summary = answer(main)
    sections = [
        f"<h1>mixersweep report: {escape(summary.name)}</h1>",
        f'<section class="answer" id="answer">{_answer(summary)}</section>',
        f"<h2>What to bear in mind</h2>{_list(summary.rest)}<p>{escape(count_runs(table, all_statistics))}</p>",
        _figures(gallery),
        _statistics(main),
        _EXPLORE,
        _RUNS,
        _unfinished(table),
        _other_comparisons(all_statistics),
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


def _answer(summary: Answer) -> str:
    """The main caveats, then a line for each verdict, then the numbers."""
    first = _list(summary.first, "caveats") if summary.first else ""
    numbers = _sheet(summary.numbers) if summary.numbers.rows else ""
    return first + "".join(map(_question, summary.questions)) + numbers


def _question(question: Question, level: str = "h2") -> str:
    lines = "".join(
        f'<li class="{verdict.finding}"><span class="subject">{escape(verdict.subject)}:</span> '
        f"<strong>{escape(verdict.statement)}</strong>"
        + (
            f'<span class="comma">,</span> <span class="because">{escape(verdict.explanation)}</span>'
            * bool(verdict.explanation)
        )
        + "</li>"
        for verdict in question.shown
    )
    body = f'<ul class="verdicts">{lines}</ul>' if lines else f"<p>{escape(question.unanswered)}</p>"
    return f"<{level}>{escape(question.asked)}</{level}>{body}"


def _list(texts: Iterable[str], name: str = "") -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul{f' class={name}' * bool(name)}>{items}</ul>"


def _figures(gallery: Gallery) -> str:
    drawn = "\n".join(_figure(figure, number == 0) for number, figure in enumerate(gallery.figures))
    left = "".join(f"<li>{escape(name)}: {escape(reason)}.</li>" for name, reason in gallery.left_out.items())
    missing = f'<p class="note">Not drawn:</p><ul class="note">{left}</ul>' if left else ""
    return f'<h2>Figures</h2><div class="figures">{drawn}</div>{missing}'


def _figure(figure: Figure, first: bool) -> str:
    """A figure: its SVG as an image with colours for a dark page."""
    svg = figure.paths["svg"].read_text(encoding="utf-8")
    rules = "".join(
        f'[style*="fill: {light}"]{{fill:{dark} !important}}[style*="stroke: {light}"]{{stroke:{dark} !important}}'
        for light, dark in DARKENED.items()
    )
    style = f"<style>@media screen and (prefers-color-scheme: dark){{{rules}}}</style>"
    start = svg.index(">", svg.index("<svg")) + 1
    encoded = base64.b64encode((svg[:start] + style + svg[start:]).encode()).decode()
    description = escape(f"{figure.title}. {figure.caption}", quote=True)
    css = ' class="first"' if first else ""
    return (
        f'<figure{css} id="{escape(figure.name, quote=True)}">'
        f'<img alt="{description}" src="data:image/svg+xml;base64,{encoded}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _statistics(statistics: Statistics) -> str:
    return f"<h2>Statistics</h2>{''.join(_sheet(sheet) for sheet in sheets(statistics))}"


def _sheet(sheet: Sheet) -> str:
    head = "".join(
        f'<th scope="col"{_number(column.is_number)}>{escape(column.header)}</th>' for column in sheet.columns
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{_number(c.is_number)}>{escape(text)}</td>" for c, text in zip(sheet.columns, texts, strict=True)
        )
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
<div class="controls"><label>show runs containing <input type="search" id="filter" placeholder="words"></label>
<span class="note" id="count"></span></div>
<div class="wide" tabindex="0" role="region" aria-label="Completed runs"><table id="table">
<thead><tr id="head"></tr></thead><tbody id="body"></tbody></table></div>
<p class="status" id="said-too" aria-hidden="true"></p><button type="button" id="more">show more</button>
<noscript><p>The table needs JavaScript; runs.csv beside this page has all its values.</p></noscript>"""


def _unfinished(table: Table) -> str:
    if not table.others:
        return "<h2>Runs without a result</h2><p>Every run that was found is completed.</p>"
    lines = "".join(
        f"<tr><td>{escape(str(row['name']))}</td><td>{escape(row['state'])}</td>"
        f'<td class="long">{escape(str(row["error"] or "–"))}</td></tr>'
        for row in table.others
    )
    counts = ", ".join(f"{n} {state}" for state, n in table.states.items() if state != State.COMPLETED)
    return (
        f"<h2>Runs without a result</h2><details{' open' if len(table.others) <= 20 else ''}>"
        f"<summary>{len(table.others)}: {escape(counts)}</summary>"
        '<div class="wide" tabindex="0" role="region" aria-label="Runs without a result"><table id="failed"><thead><tr>'
        '<th scope="col">run</th><th scope="col">state</th><th scope="col">error</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div></details>"
    )


def _other_comparisons(all_statistics: Sequence[Statistics]) -> str:
    """The comparisons other than the main one, each folded up."""
    if len(all_statistics) < 2:
        return ""
    parts = []
    for statistics in all_statistics[1 : MOST_COMPARISONS + 1]:
        comparison = statistics.comparison
        parts.append(
            f"<details><summary>{escape(comparison.name)}: {len(comparison.rows)} runs; differs from the main one in "
            f"{escape(describe_difference(comparison))}</summary>"
            + "".join(_question(question, "h3") for question in answer(statistics).questions)
            + "".join(_sheet(sheet) for sheet in sheets(statistics))
            + "</details>"
        )
    more = len(all_statistics) - 1 - MOST_COMPARISONS
    parts += [f"<p>And {more} more, all in statistics.json.</p>"] if more > 0 else []
    return f"<h2>Other comparisons</h2>{''.join(parts)}"


def _recipe(statistics: Statistics) -> str:
    held = {name: value for name, value in statistics.comparison.fixed.items() if value is not None}
    lists = [
        ("Settings that all compared runs have in common", held),
        ("Versions and environment of the compared runs", describe_versions(statistics.comparison.rows)),
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
    report = f"<p>This command makes this report:</p><pre>{escape(command)}</pre>"
    each = "Each run is repeated by the command beside it in the table."
    where = f"<p>Only runs with <code>{escape(table.where)}</code> were read.</p>" if table.where else ""
    return f"<h2>To repeat it</h2>{report}{where}<p>{each}</p>"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data(table: Table, x: str, y: str) -> str:
    """The JSON for the page's script: the values of each completed run, the columns' names and labels, the looks."""
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
