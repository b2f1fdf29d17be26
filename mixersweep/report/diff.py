"""What differs between runs, side by side: first what was asked, then what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixersweep.errors import UserError
from mixersweep.report.table import Row, row_of
from mixersweep.runs.find import find
from mixersweep.runs.listing import read_listed
from mixersweep.runs.record import KEYS
from mixersweep.runs.state import State

NEVER = ("name", "fingerprint", "run_dir", "command", "overrides", "settings", "started", "finished")
"""What differs between any two runs, or says again what other lines say."""


def read(places: Sequence[str], runs_dir: Path) -> list[Row]:
    """The runs that are named, by path or name in ``runs_dir``; raises ``UserError`` for what is no whole run."""
    rows = []
    for place in places:
        listed = read_listed(find(place, runs_dir).absolute())
        if listed is None:
            raise UserError(f"{place}: is no run directory; it has no config.yaml")
        if listed.state is State.BROKEN:
            raise UserError(f"{place}: {listed.reason}")
        rows.append(row_of(listed))
    return rows


def differences(rows: Sequence[Row]) -> dict[str, list[tuple[str, list[Any]]]]:
    """Under ``settings``, ``sizes`` and ``results``: (name, the value of each run) where they differ.

    Results are listed whether they differ or not, so that equal ones are seen to be equal.
    """
    settings = dict.fromkeys(name for row in rows for name in row["settings"])
    measured = KEYS[KEYS.index("epochs") :]
    results = [name for name in ("state", "error", *measured) if name not in NEVER]
    sizes = [name for name in dict.fromkeys([*KEYS, *rows[0]]) if name not in (*settings, *results, *NEVER)]
    groups = {"settings": list(settings), "sizes": sizes, "results": results}
    found: dict[str, list[tuple[str, list[Any]]]] = {}
    for group, names in groups.items():
        lines = []
        for name in names:
            values = [row["settings"].get(name) if group == "settings" else row.get(name) for row in rows]
            same = all(value == values[0] for value in values)
            if group == "results" and isinstance(values[0], dict):
                lines += _inside(name, values)
            elif not same or (group == "results" and values[0] is not None):
                lines.append((name, values))
        found[group] = lines
    return found


def _inside(name: str, values: Sequence[dict[str, Any] | None]) -> list[tuple[str, list[Any]]]:
    """The differing entries of a group such as ``versions``."""
    keys = dict.fromkeys(key for value in values for key in value or {})
    lines = [(f"{name}.{key}", [(value or {}).get(key) for value in values]) for key in keys]
    return [(key, own) for key, own in lines if any(value != own[0] for value in own)]
