"""Run directories as one tidy table: one row per run whatever its state, the keys of ``result.json`` first.

Runs that are not completed stay in the table, and every report counts and names them. Building the table reads only
small JSON files; ``predictions`` and ``curve`` read the larger ones, for the runs that are compared.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.errors import MixersweepError, UserError
from mixersweep.runs.directory import read_rows
from mixersweep.runs.experiment import Experiment, experiment, numbers_version_of
from mixersweep.runs.files import open_atomic
from mixersweep.runs.listing import Listed, listing
from mixersweep.runs.record import KEYS
from mixersweep.runs.state import State

Row = dict[str, Any]

DERIVED = (
    "state",
    "error",
    "run_dir",
    "shape",
    "channels_over_tokens",
    "uncounted_share",
    "numbers_version",
    "command",
)
"""The columns after those of the record: the state of the run, and what follows from its sizes and settings."""


@dataclass(frozen=True)
class Table:
    """Every run that was found, ordered by name and directory; ``repeated`` are further copies of the same runs.

    ``directories`` are the directories that were searched, ``where`` the condition on runs as the user wrote it.
    """

    rows: list[Row]
    repeated: list[Row] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    where: str | None = None

    @property
    def completed(self) -> list[Row]:
        """The runs with a result."""
        return [row for row in self.rows if row["state"] == State.COMPLETED]

    @property
    def others(self) -> list[Row]:
        """The runs without a result."""
        return [row for row in self.rows if row["state"] != State.COMPLETED]

    @property
    def states(self) -> dict[str, int]:
        """The number of runs in each state, the most frequent first."""
        return dict(Counter(row["state"] for row in self.rows).most_common())

    @cached_property
    def columns(self) -> list[str]:
        """The keys of a record, then ``DERIVED``, then the settings as the command line spells them."""
        names = dict.fromkeys([*KEYS, *DERIVED])
        for row in self.rows:
            names.update(dict.fromkeys(row))
        return [name for name in names if name != "settings"]


def collect(
    directories: Sequence[Path], where: Callable[[Mapping[str, Any]], bool] | None = None, written: str = ""
) -> Table:
    """Read all run directories in ``directories`` that meet ``where``, to compare them; ``written`` is its text.

    Raises ``UserError`` where a directory is missing or none of the runs meets the condition, and ``MixersweepError``
    where no run is completed.
    """
    table = read(directories, where, written)
    if not table.completed:
        states = ", ".join(f"{count} {state}" for state, count in table.states.items())
        names = ", ".join(table.directories)
        raise MixersweepError(f"{names}: no run is completed yet ({states}); `mixersweep status` shows them")
    return table


def read(
    directories: Sequence[Path], where: Callable[[Mapping[str, Any]], bool] | None = None, written: str = ""
) -> Table:
    """Read all run directories in ``directories`` that meet ``where``, whether any is completed or not.

    Raises ``UserError`` where a directory is missing or none of the runs meets the condition.
    """
    found, rows = 0, []
    for listed in listing(directories):
        found += 1
        row = row_of(listed)
        if where is None or where({**listed.values(), **row}):
            rows.append(row)
    names = ", ".join(str(directory) for directory in directories)
    if not found:
        raise UserError(
            f"{names}: holds no run directories; `mixersweep train` makes them, MIXERSWEEP_RUNS names theirs"
        )
    if not rows:
        raise UserError(f"--where {written!r}: none of the {found} runs in {names} is such a run")
    rows.sort(key=lambda row: (row["name"], row["state"] != State.COMPLETED, row["run_dir"]))
    kept: dict[str, Row] = {}
    repeated = []
    for row in rows:
        identity = row["fingerprint"] or row["run_dir"]
        if identity in kept:
            repeated.append(row)
        else:
            kept[identity] = row
    return Table(list(kept.values()), repeated, [str(directory) for directory in directories], written or None)


def row_of(listed: Listed) -> Row:
    """The table row of one run directory."""
    values = listed.values()
    record = listed.record
    tokens, channels = record["tokens"], record["channels"]
    mixing = record["mixing_parameters"]
    uncounted = [record[f"{part}_parameters"] for part in ("stem", "head", "skip")]
    made = experiment(listed.config) if listed.stored else Experiment()
    values = {**values, **made.flat, **record}
    return {
        **record,
        "state": listed.state,
        "error": listed.reason or listed.status.error,
        "run_dir": str(listed.path),
        "shape": shape_of(tokens, channels),
        "channels_over_tokens": channels / tokens if tokens and channels else None,
        "uncounted_share": sum(n or 0 for n in uncounted) / mixing if mixing else None,
        "numbers_version": numbers_version_of(made, listed.stored) if listed.stored else None,
        "command": command_of(record),
        **{name: value for name, value in values.items() if name not in record and name not in DERIVED},
        "settings": made.flat,
    }


def shape_of(tokens: int | None, channels: int | None) -> str | None:
    """The shape of a Mixer: ``tall`` (S > C), ``wide`` (S < C) or ``square``; None for a network without tokens."""
    if not tokens or not channels:
        return None
    return "square" if tokens == channels else "tall" if tokens > channels else "wide"


def command_of(record: Mapping[str, Any]) -> str | None:
    """The command that repeats a run; None where its record holds no overrides."""
    if record["overrides"] is None:
        return None
    return shlex.join(["mixersweep", "train", *record["overrides"]])


def predictions(row: Row) -> tuple[NDArray[np.bool_], NDArray[np.int32]] | None:
    """Which test images a run classified correctly (N,), and their labels (N,); None without a readable file."""
    try:
        path = Path(row["run_dir"]) / "predictions.npz"
        with path.open("rb") as file, np.load(file) as stored:  # opened here, since a torn file leaves numpy's open
            prediction, label = stored["prediction"], stored["label"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if prediction.shape != label.shape or label.ndim != 1 or not len(label):
        return None
    return prediction == label, label


def curve(row: Row) -> list[Row]:
    """The metrics of one run, one row per epoch; empty where they cannot be read."""
    try:
        return read_rows(Path(row["run_dir"]) / "metrics.jsonl")
    except (OSError, ValueError):
        return []


def write_csv(table: Table, path: Path) -> None:
    """Write ``runs.csv``: null is empty, lists and groups are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = table.columns
    writer.writerow(columns)
    writer.writerows([_plain(row.get(name)) for name in columns] for row in table.rows)
    with open_atomic(path) as file:
        file.write(text.getvalue().encode())


def write_parquet(table: Table, path: Path) -> None:
    """Write ``runs.parquet``: mixed integers and floats become floats, other mixed columns text."""
    import pyarrow
    import pyarrow.parquet

    arrays = {name: _one_type([row.get(name) for row in table.rows]) for name in table.columns}
    with open_atomic(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(arrays), file)


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _one_type(values: Iterable[Any]) -> list[Any]:
    values = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values] if float in kinds else values
    if len(kinds) <= 1:
        return values
    return [None if value is None else str(_plain(value)) for value in values]
