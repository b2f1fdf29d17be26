"""The differences between a few runs, side by side: settings, sizes and results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixersweep.errors import UserError
from mixersweep.paths import expand_home, sweeps_dir
from mixersweep.report.table import Row, row_of
from mixersweep.runs.files import read_json
from mixersweep.runs.find import find
from mixersweep.runs.listing import read_listed
from mixersweep.runs.record import KEYS
from mixersweep.runs.state import State

NEVER = ("name", "fingerprint", "run_dir", "command", "overrides", "settings", "started", "finished")
"""Columns that are not compared: they differ between any two runs, or repeat other columns."""


def read(runs: Sequence[str], runs_dir: Path) -> list[Row]:
    """Read runs given by path, or by name in ``runs_dir``; raises ``UserError`` for what is no run or is broken."""
    rows = []
    for run in runs:
        listed = read_listed(find(run, runs_dir).absolute())
        if listed is None:
            raise UserError(f"{run}: is no run directory; it has no config.yaml")
        if listed.state is State.BROKEN:
            raise UserError(f"{run}: {listed.reason}")
        rows.append(row_of(listed))
    return rows


def of_sweeps(names: Sequence[str], runs_dir: Path) -> list[tuple[str, int, list[tuple[int, float, float]]]] | None:
    """Completed runs of sweeps, by model and width: of each sweep their count, mean and deviation of test accuracy.

    None where the names are not all of sweeps. A deviation is that of a sample, NaN of a single run.
    """
    runs_dir = expand_home(runs_dir).absolute()
    folder = sweeps_dir(runs_dir)
    stored = [read_json(folder / name / "sweep.json") if name and "/" not in name else None for name in names]
    runs = [each["runs"] for each in stored if isinstance(each, dict) and "runs" in each]
    if len(runs) < len(names):
        return None
    cells: dict[tuple[str, int], list[list[float]]] = {}
    for place, of_sweep in enumerate(runs):
        for run in of_sweep:
            listed = read_listed(runs_dir / run)
            if listed is None or listed.result is None:
                continue
            key = (listed.result["model"], listed.result["width"])
            cells.setdefault(key, [[] for _ in names])[place].append(listed.result["test_accuracy"])
    return [(*key, [_moments(values) for values in of_each]) for key, of_each in sorted(cells.items())]


def _moments(values: Sequence[float]) -> tuple[int, float, float]:
    mean = statistics.fmean(values) if values else math.nan
    return len(values), mean, statistics.stdev(values) if len(values) > 1 else math.nan


def differences(rows: Sequence[Row]) -> dict[str, list[tuple[str, list[Any]]]]:
    """The settings, sizes and results of runs: under each of these names, (column, the value of each run).

    Settings and sizes are listed where they differ, results always, so that equal ones are seen to be equal.
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
                lines += _differing_entries(name, values)
            elif not same or (group == "results" and values[0] is not None):
                lines.append((name, values))
        found[group] = lines
    return found


def _differing_entries(name: str, values: Sequence[dict[str, Any] | None]) -> list[tuple[str, list[Any]]]:
    """The differing entries of a group such as ``versions``."""
    keys = dict.fromkeys(key for value in values for key in value or {})
    lines = [(f"{name}.{key}", [(value or {}).get(key) for value in values]) for key in keys]
    return [(key, own) for key, own in lines if any(value != own[0] for value in own)]
