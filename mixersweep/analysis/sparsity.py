"""``analyze sparsity``: how sparse trained effective weights are, and the test of Proposition 3.3 (``proposition``).

Over the connections of a layer: |w|₁/(√n |w|₂) and Hoyer's index (0.80 and 0.20 for normal weights, as all start), and
the share of weights below thresholds in units of their root mean square. Over the whole effective matrix, zeros
counted: Hoyer's index and the nuclear norm. Weights that are shared count as often as they act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.analysis.intervals import over_seeds
from mixersweep.analysis.output import tracked
from mixersweep.analysis.proposition import LAMBDAS, judge
from mixersweep.analysis.subjects import Subject, groups, mixing_maps
from mixersweep.data import Folder, find, load
from mixersweep.errors import UserError
from mixersweep.layers.sparsity import THRESHOLDS, measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


def analyze(
    subjects: Sequence[Subject], *, tested: bool = True, lambdas: int = len(LAMBDAS), seeds: int = 5
) -> tuple[dict[str, Any], list[Row]]:
    """``sparsity.json``: ``layers`` (a row for each run, layer and epoch), ``groups`` (means over layers and seeds, the
    rows of the table) and ``proposition``, the test on images of the runs' data set, null with ``reasons``.
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
    document: dict[str, Any] = {"layers": layers, "groups": table, "proposition": None, "reasons": {}}
    if not tested:
        document["reasons"]["proposition"] = "--no-test"
        return document, table
    name = subjects[0].config.data.name
    if isinstance(find(name), Folder):
        document["reasons"]["proposition"] = f"{name} is a folder of images, which is not loaded whole"
        return document, table
    if lambdas < 1 or seeds < 2:
        raise UserError(f"--lambdas {lambdas} --seeds {seeds}: at least 1 and 2")
    images, _ = load(name, Path(subjects[0].config.data_dir))
    chosen = tuple(float(share) for share in np.geomspace(LAMBDAS[0], LAMBDAS[-1], lambdas))
    steps = iter(tracked(range(seeds), "sparsity: proposition 3.3"))
    next(steps)
    summary, rows = judge(
        range(seeds), images.images, lambdas=chosen, sizes=_sizes(images.images), done=lambda _: next(steps, None)
    )
    document["proposition"] = {**summary, "data": name, "rows": rows}
    return document, table


def _sizes(images: NDArray[np.uint8]) -> tuple[int, int]:
    side = min(7, images.shape[-1])
    return side, side


def _plain(row: Row) -> Row:
    """NaN, of a layer of no or zero weights, is no JSON."""
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
        found.append(line)
    return found


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Hoyer's index over epochs, and at equal training loss over λ."""
    from mixersweep.analysis.drawing import figure

    panels: list[Any] = [lambda axes: _widths(axes, document["groups"])]
    if document["proposition"] is not None:
        lines = document["proposition"]["per_lambda"]
        panels += [lambda axes: _bounds(axes, document["proposition"]), lambda axes: _at_equal_loss(axes, lines)]
    return figure(out, "sparsity", "Sparsity of trained weights", panels, one_legend=False)


def _widths(axes: Axes, rows: Sequence[Row]) -> None:
    from mixersweep.analysis.drawing import INK, band, log_axis, look_of

    looks = look_of([row["model"] for row in rows])
    ends: dict[str, list[Row]] = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        last = max((row for row in rows if row["group"] == group), key=lambda row: int(row["epoch"]))
        ends.setdefault(last["model"], []).append(last)
    for model, every in ends.items():
        some = sorted(every, key=lambda row: int(row["width"]))
        intervals = [row["hoyer_interval"] for row in some]
        low, high = ([None if i is None else i[end] for i in intervals] for end in (0, 1))
        band(axes, [row["width"] for row in some], [row["hoyer"] for row in some], low, high, looks[model], model)
    axes.axhline(1 - (2 / np.pi) ** 0.5, color=INK, linewidth=0.9, linestyle=(0, (4, 2.5)), label="normal weights")
    log_axis(axes, [row["width"] for row in rows])
    axes.set_xlabel("effective width m")
    axes.set_ylabel("Hoyer index of the connections")
    axes.set_title("after training, mean of layers", fontsize=9, loc="left")


def _bounds(axes: Axes, found: Mapping[str, Any]) -> None:
    from mixersweep.report.style import BLUE, GREEN, ORANGE

    shares = [line["lambda_share"] for line in found["per_lambda"]]
    for key, label, colour, marker in (
        ("objective", "trained factors V, W", BLUE, "o"),
        ("l2_bound", "least of L(B) + λ|B|₂", ORANGE, "s"),
        ("l1_bound", "least of L(B) + λ/(CS)·|B|₁", GREEN, "^"),
    ):
        means = [np.mean([row[key] for row in found["rows"] if row["lambda_share"] == share]) for share in shares]
        axes.plot(shares, means, color=colour, marker=marker, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("λ over the least that makes all zero")
    axes.set_ylabel("objective, mean of seeds")
    axes.set_title("Proposition 3.3: the bound holds", fontsize=9, loc="left")


def _at_equal_loss(axes: Axes, lines: Sequence[Row]) -> None:
    from mixersweep.report.style import BLUE, GREEN, GREY, ORANGE

    for key, label, colour, marker in (
        ("hoyer_l1", "dense, L1 penalty", GREEN, "^"),
        ("hoyer_factors", "V ⊗ W, L2 on the factors", BLUE, "o"),
        ("hoyer_unpenalised", "V ⊗ W, no penalty", GREY, "x"),
        ("hoyer_l2", "dense, L2 penalty", ORANGE, "s"),
    ):
        points = [(line["lambda_share"], line[key]) for line in lines if line[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("λ over the least that makes all zero")
    axes.set_ylabel("Hoyer index of B")
    axes.set_title("at equal training loss", fontsize=9, loc="left")
