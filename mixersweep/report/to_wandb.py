"""Send a report to W&B: a run of job type ``report`` beside the runs of its sweep, with all that the page has.

W&B's own panels cannot plot mean and error over runs against a setting. So the figures are sent as images, the page as
it is, the tables as tables, and the statistics as summary values. A sweep always uses the same report run, which shows
its latest report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixersweep.report.build import Report
from mixersweep.runs.files import read_json
from mixersweep.tracking.identity import Destination, Identity, write_identity

ROWS = 10_000
"""The most rows that a W&B table takes."""

KEYS = ("trend", "pair", "accuracy")
"""The first parts of summary keys that a new report removes where an earlier one left them."""


def open_run(folder: Path, sweep: Mapping[str, Any], destination: Destination, patience: float) -> Any:
    """Open the W&B run of a sweep's report, whose id is kept in the sweep's ``folder``; ``sweep`` are its settings.

    ``patience`` is the number of seconds to wait for an answer. Raises ``UsageError`` without an API key and
    ``CommError`` without an answer.
    """
    from mixersweep.tracking.client import begin

    if read_json(folder / "tracking.json") is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_identity(folder, Identity("report-").redrawn())
    name, experiment = sweep["name"], sweep.get("experiment")
    return begin(
        folder,
        destination,
        patience,
        "online",
        {"finish_timeout": patience / 2, "finish_timeout_raises": True},
        name=f"report {name}",
        group=name,
        job_type="report",
        tags=["report", *([experiment] if experiment else [])],
        config={key: value for key, value in sweep.items() if isinstance(value, int | float | str)},
    )


def send(run: Any, report: Report, patience: float) -> None:
    """Log a report that was written to disk to its W&B run; raises what the client raises."""
    import wandb

    from mixersweep.tracking.client import call_within

    assert report.page is not None
    row: dict[str, Any] = {
        f"figures/{name}": wandb.Image(str(paths["png"]), caption=report.captions[name])
        for name, paths in report.figures.items()
    }
    for name, rows in report.tables.items():
        columns, cells = table(rows)
        row[f"tables/{name}"] = wandb.Table(columns=list(columns), data=list(cells), allow_mixed_types=True)
    row["report/page"] = wandb.Html(str(report.page), inject=False)
    run.log(row)
    found = summary(report)
    for old in [key for key in dict(run.summary) if key.partition("/")[0] in KEYS and key not in found]:
        del run.summary[old]
    run.summary.update(found)
    artifact = wandb.Artifact(f"report-{run.id}", type="report", metadata={"answer": report.answer})
    artifact.add_dir(str(report.page.parent), policy="immutable", skip_cache=True)
    call_within(patience, lambda: run.log_artifact(artifact).wait())


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The columns and cells of a W&B table: bounds of intervals in columns of their own, other lists as JSON."""
    flat = [dict(_flat(row)) for row in rows[:ROWS]]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    return columns, [[row.get(name) for name in columns] for row in flat]


def summary(report: Report) -> dict[str, Any]:
    """The summary values: the answer and the numbers behind it, under keys such as ``trend/pk tall/rise``."""
    found: dict[str, Any] = {"answer": report.answer, "runs": len(report.table.rows)}
    found |= {f"runs_{state}": count for state, count in report.table.states.items()}
    parts = (
        ("trend", report.tables.get("trends", []), ("model", "branch")),
        ("pair", report.tables.get("pairs", []), ("first", "second")),
        ("accuracy", report.tables.get("accuracy", []), ("model", "shape", "width")),
    )
    for kind, rows, names in parts:
        for row in rows:
            label = " ".join(str(row[name]) for name in names if row.get(name) is not None)
            values = {key: value for key, value in _flat(row) if key not in names and value is not None}
            found |= {f"{kind}/{label}/{key}": value for key, value in values.items()}
    return found


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if "interval" in key:
            low, high = value or (None, None)
            yield f"{key}_low", low
            yield f"{key}_high", high
        elif isinstance(value, Mapping | list | tuple):
            yield key, json.dumps(value)
        else:
            yield key, value
