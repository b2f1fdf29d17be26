"""Format many runs for ``mixersweep status``: a line for each, and the number in each state."""

from __future__ import annotations

import difflib
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixersweep.errors import UserError
from mixersweep.runs.listing import Listed
from mixersweep.runs.state import SHOWN, State
from mixersweep.sweeps.text import align, format_duration

COLUMNS = ("state", "epoch", "accuracy", "images/s", "left", "host", "beat", "job", "run")
DROPPABLE = ("host", "images/s", "beat", "left", "job")
"""The columns to leave out on a narrow terminal, in this order."""


@dataclass(frozen=True)
class Line:
    """One run as ``status`` shows it; ``record`` is what ``--json`` prints, with times in seconds since 1970 (UTC)."""

    record: Mapping[str, Any]

    @classmethod
    def of(cls, listed: Listed, now: float) -> Line:
        """Build the line of a run at the time ``now``, in seconds since 1970 (UTC)."""
        status, result, row = listed.status, listed.result or {}, listed.row or {}
        planned, epochs = listed.planned, listed.config.get("epochs")
        last = {**row, **result, "epoch": result.get("epochs", row.get("epoch", 0))}
        is_held = listed.state in (State.RUNNING, State.LOST)
        return cls(
            {
                "name": listed.name,
                "state": listed.state,
                "run_dir": str(listed.path),
                **{key: planned.get(key) for key in ("model", "dataset", "width", "connections", "seed")},
                **{key: planned.get(key) for key in ("experiment", "sweep", "fingerprint")},
                "epoch": last["epoch"],
                "epochs": epochs,
                **{key: last.get(key) for key in ("train_loss", "validation_accuracy", "test_accuracy")},
                "images_per_second": last.get("images_per_second"),
                "seconds_left": seconds_left(listed, now) if listed.state is State.RUNNING else None,
                "host": status.host.partition("/")[0] if status.host else None,
                "pid": status.pid,
                "job": listed.job or status.job,
                "job_state": listed.job_state,
                "since": status.since,
                "heartbeat": status.heartbeat if is_held else None,
                "error": listed.reason or status.error,
                "next": listed.next,
            }
        )

    @property
    def order(self) -> tuple[Any, ...]:
        """The sort key: state, with runs that need a person last (nearest the prompt), then model, width and seed."""
        record = self.record
        keys = (record["model"] or "", record["width"] or 0, record["seed"] or 0, record["name"])
        return (SHOWN.index(record["state"]), *keys)

    def cells(self, now: float) -> tuple[str, ...]:
        """Return the texts of the run's cells, in the order of ``COLUMNS``."""
        record = self.record
        heartbeat, remarks = record["heartbeat"], [record[key] for key in ("error", "next") if record[key]]
        job = "" if record["job"] is None else f"{record['job']} {record['job_state'] or ''}".strip()
        epochs = f"{record['epoch']}/{record['epochs']}" if record["epochs"] else "-"
        return (
            record["state"],
            epochs,
            _format_number(record["test_accuracy"], ".4f"),
            _format_number(record["images_per_second"], ",.0f"),
            "-" if record["seconds_left"] is None else format_duration(record["seconds_left"]),
            record["host"] or "-",
            "-" if heartbeat is None else f"{format_duration(max(0.0, now - heartbeat))} ago",
            job,
            record["name"] + (f"  ({' '.join('; '.join(remarks).split())})" if remarks else ""),
        )


def seconds_left(listed: Listed, now: float) -> float | None:
    """Estimate the seconds that a running run still needs, from the time of its last epochs; None before the first.

    Only epochs that the present process trained count: before them the run may have paused.
    """
    row, epochs = listed.row, listed.config.get("epochs")
    if row is None or epochs is None:
        return None
    times, began = [float(row["time"]) for row in listed.rows], listed.status.since or 0.0
    durations = [later - earlier for earlier, later in itertools.pairwise(times) if earlier >= began]
    epoch = statistics.median(durations) if durations else float(row["seconds"])
    left = epoch * (float(epochs) - float(row["epoch"]))
    return max(0.0, left - max(0.0, now - max(times[-1], began)))


def table(lines: Iterable[Line], width: int | None, now: float | None = None) -> list[str]:
    """Format the lines as a table with a heading, at most ``width`` characters wide (None: any width)."""
    now = time.time() if now is None else now
    rows = [COLUMNS, *(line.cells(now) for line in lines)]
    if not any(row[COLUMNS.index("job")] for row in rows[1:]):
        rows = [tuple(cell for name, cell in zip(COLUMNS, row, strict=True) if name != "job") for row in rows]
    return align(rows, ("epoch", "accuracy", "images/s", "left", "beat"), width, DROPPABLE)


def sort_by(name: str, lines: Sequence[Line]) -> list[Line]:
    """Sort the lines by the value ``name``, those without it first; raises ``UserError`` for an unknown name."""
    known = list(lines[0].record) if lines else []
    if lines and name not in known:
        matches = difflib.get_close_matches(name, known, 1)
        nearest = f"; the nearest is {matches[0]}" if matches else f"; there are {', '.join(known)}"
        raise UserError(f"--sort {name}: no such value of a run{nearest}")
    return sorted(lines, key=lambda line: (line.record[name] is not None, line.record[name] or 0))


def count_table(lines: Iterable[Line]) -> list[str]:
    """Format the number of runs in each state as a table with a row for each model and width."""
    counts: dict[tuple[str, int], Counter[str]] = {}
    for line in lines:
        key = (line.record["model"] or "-", line.record["width"] or 0)
        counts.setdefault(key, Counter())[line.record["state"]] += 1
    states = [state for state in SHOWN if any(of_state[state] for of_state in counts.values())]
    rows = [
        (model, str(width), *(str(of_state[state] or "-") for state in states))
        for (model, width), of_state in sorted(counts.items())
    ]
    return align([("model", "width", *states), *rows], ("width", *states)) if rows else []


def summary(states: Iterable[str]) -> str:
    """Summarise states in words, such as ``12 runs: 9 completed, 2 running, 1 failed``."""
    counts = Counter(states)
    total = sum(counts.values())
    by_state = ", ".join(f"{counts[state]:,} {state}" for state in SHOWN if counts[state])
    return f"{total:,} run{'' if total == 1 else 's'}" + (f": {by_state}" if total else "")


def _format_number(value: float | None, format_spec: str) -> str:
    return "-" if value is None else format(value, format_spec)
