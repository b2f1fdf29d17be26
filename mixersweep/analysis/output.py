"""Write the output of an analysis as JSON, CSV and Markdown, and show its progress on stderr."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mixersweep.errors import UserError
from mixersweep.runs.files import write_json, write_text

T = TypeVar("T")

EVERY = 10.0
"""Seconds between two lines of progress where stderr is no terminal."""


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items while showing progress: a bar on a terminal, else a line every few seconds."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    if console.is_terminal:
        yield from track(items, description=what, console=console, transient=True)
        return
    printed = began = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if number and now - printed > EVERY:
            left = (now - began) / number * (len(items) - number)
            print(f"mixersweep: {what}: {number} of {len(items)}, {left:.0f} s left", file=sys.stderr, flush=True)
            printed = now
        yield item


def folder(out: Path) -> Path:
    """Create the output directory ``out``; raises ``UserError`` where that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return out


def write(out: Path, verb: str, document: Any, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``document`` to ``verb.json`` and ``rows`` to ``verb.csv`` and ``verb.md``; returns the path of the JSON.

    Raises ``UserError`` where a file cannot be written.
    """
    try:
        write_json(out / f"{verb}.json", document)
        write_text(out / f"{verb}.csv", _csv(rows))
        write_text(out / f"{verb}.md", markdown(rows))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return out / f"{verb}.json"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table."""
    names = _names(rows)
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    lines += [f"| {' | '.join(shown(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """Format a value for a table: a dash for None, four digits for floats, ``a to b`` for pairs."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " to ".join(map(shown, value)) if len(value) == 2 else ", ".join(map(shown, value))
    return str(value).replace("|", "\\|")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _names(rows), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = {name: value for name, value in row.items() if not isinstance(value, (list, tuple))}
        lists = {name: " ".join(map(str, value)) for name, value in row.items() if isinstance(value, (list, tuple))}
        writer.writerow({**flat, **lists})
    return text.getvalue()


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
