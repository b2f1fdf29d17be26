"""``analyze sparsity``: how sparse the effective weight matrices are after training.

Over a layer's n connections: |w|₁/(√n |w|₂) and Hoyer's index (0.80 and 0.20 for the normal weights of
initialisation), and the share of weights below thresholds in units of their root mean square. Over the whole effective
matrix, zeros included: Hoyer's index and the nuclear norm. A shared weight counts once for each of its uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixersweep.analysis.intervals import over_seeds
from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import Subject, groups, mixing_maps
from mixersweep.layers.sparsity import THRESHOLDS, measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


def analyze(subjects: Sequence[Subject]) -> tuple[dict[str, Any], list[Row]]:
    """Build ``sparsity.json``, and the rows of its table.

    It has ``layers`` (a row for each run, layer and epoch) and ``groups`` (means over layers and seeds: the table).
    """
    label_of = {id(run): label for label, runs in groups(subjects).items() for run in runs}
    layers: list[Row] = []
    plan = [(subject, epoch) for subject in subjects for epoch in subject.epochs]
    for subject, epoch in tracked(plan, "sparsity"):
        about = {
            "run": subject.name,
            "epoch": epoch,
            "group": label_of[id(subject)],
            "model": subject.config.model.name,
            "width": subject.directory.run.architecture.width,
        }
        for name, layer in mixing_maps(subject.network(epoch)).items():
            layers.append({**about, "layer": name, **_plain(measures(layer))})
    table = _table(layers)
    return {"layers": layers, "groups": table}, table


def _plain(row: Row) -> Row:
    """Replace NaN, as of a layer without nonzero weights, by None for JSON."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}


def _table(layers: Sequence[Row]) -> list[Row]:
    found: list[Row] = []
    for group, epoch in dict.fromkeys((row["group"], row["epoch"]) for row in layers):
        inside = [row for row in layers if (row["group"], row["epoch"]) == (group, epoch)]
        runs = list(dict.fromkeys(row["run"] for row in inside))
        first = inside[0]
        line: Row = {
            "group": group,
            "model": first["model"],
            "width": first["width"],
            "epoch": epoch,
            "runs": len(runs),
        }
        for key in ("hoyer", "l1_over_l2", "hoyer_matrix", *(f"below_{t:g}" for t in THRESHOLDS),
                    "nuclear_norm", "nuclear_over_frobenius"):  # fmt: skip
            means = []
            for run in runs:
                values = [row[key] for row in inside if row["run"] == run and row[key] is not None]
                means += [float(np.mean(values))] if values else []
            line[key] = float(np.mean(means)) if means else None
            if key == "hoyer":
                line["hoyer_interval"] = over_seeds(means)
        changes = [_hoyer(layers, run, first["epoch"]) - _hoyer(layers, run, 0) for run in runs]
        line["hoyer_change"], line["hoyer_change_interval"] = float(np.mean(changes)), over_seeds(changes)
        found.append(line)
    return found


def _hoyer(layers: Sequence[Row], run: str, epoch: int) -> float:
    """The mean of Hoyer's index over the layers of a run for which it is defined."""
    values = [row["hoyer"] for row in layers if (row["run"], row["epoch"]) == (run, epoch)]
    return float(np.mean([value for value in values if value is not None]))


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw how training changes Hoyer's index, against width."""
    from mixersweep.figures import draw_panels

    title = "Sparsity of trained weights; 95% intervals over seeds"
    return draw_panels(out, "sparsity", title, [lambda axes: _widths(axes, document["groups"])], one_legend=False)


def _widths(axes: Axes, rows: Sequence[Row]) -> None:
    from mixersweep.figures import INK, band, log_axis, looks_of

    looks = looks_of([row["model"] for row in rows])
    ends: dict[str, list[Row]] = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        last = max((row for row in rows if row["group"] == group), key=lambda row: int(row["epoch"]))
        ends.setdefault(last["model"], []).append(last)
    for model, every in ends.items():
        some = sorted(every, key=lambda row: int(row["width"]))
        intervals = [row["hoyer_change_interval"] for row in some]
        low, high = ([None if i is None else i[end] for i in intervals] for end in (0, 1))
        band(
            axes, [row["width"] for row in some], [row["hoyer_change"] for row in some], low, high, looks[model], model
        )
    axes.axhline(0, color=INK, linewidth=0.9)
    log_axis(axes, [row["width"] for row in rows])
    axes.set_xlabel("effective width m")
    axes.set_ylabel("change of the Hoyer index")
    axes.set_title("by training, of the connections", fontsize=9, loc="left")
