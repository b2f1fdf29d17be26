"""``analyze spectrum``: singular values of effective weight matrices against width, before, during and after training.

Hayase & Karakida 2024, section 4.3 and appendix D.1: a Mixer's largest singular value stays at 1 + √γ however wide it
is, while an SW-MLP's grows with width at fixed connections, which may hurt its training. Training loss is reported
beside it, because it shows whether a network trains badly rather than generalises badly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mixersweep.analysis.intervals import over_seeds
from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import Subject, groups, mixing_maps
from mixersweep.figures import framed
from mixersweep.layers import Factors, PermutedKronecker
from mixersweep.layers.effective import (
    Extremes,
    bulk_edge,
    expected_largest,
    extremes,
    extremes_of_factors,
    extremes_of_product,
)
from mixersweep.models.parts import Mixing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


def spectra(network: nn.Module) -> dict[str, tuple[Extremes, float | None]]:
    """The extreme singular values of each effective matrix by name, with the largest expected at initialisation.

    The expectation is None where there is no theory. A product of factors is listed too, beside these (``layers.0.
    mixing.0``), and so is a Monarch matrix with nothing between its two factors (``blocks.0.mixing``).
    """
    found = {name: (extremes(layer), expected_largest(layer)) for name, layer in mixing_maps(network).items()}
    for name, right, left in _products(network):
        theory = None
        if right.tied and left.tied:
            theory = bulk_edge(right.out_size, right.in_size) * bulk_edge(left.out_size, left.in_size)
        found[name] = (extremes_of_product(left, right), theory)
    for name, module in network.named_modules():
        if isinstance(module, Factors):
            found[name] = (extremes_of_factors(module), None)
    return found


def _products(network: nn.Module) -> Iterable[tuple[str, PermutedKronecker, PermutedKronecker]]:
    """Find pairs of permuted-Kronecker maps with nothing between them, as (name, right factor, left factor)."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Sequential) and not isinstance(module, Factors):
            steps = [(i, step) for i, step in enumerate(module) if not isinstance(step, nn.Identity)]
            for (i, right), (j, left) in pairwise(steps):
                if isinstance(right, PermutedKronecker) and isinstance(left, PermutedKronecker):
                    yield name if isinstance(module, Mixing) else f"{name}.{i}*{j}", right, left


def analyze(subjects: Sequence[Subject], which: str = "all") -> tuple[list[Row], list[Row]]:
    """Build ``spectrum.json``, a row for each run, layer and epoch, and the table of groups of runs.

    ``which`` selects epochs: ``all`` that are kept, the ``first`` (0, at initialisation) or the ``last``.
    """
    label_of = {id(run): label for label, runs in groups(subjects).items() for run in runs}
    plan: list[tuple[Subject, int]] = []
    for subject in subjects:
        there = subject.epochs
        plan += [(subject, epoch) for epoch in {"all": there, "first": there[:1], "last": there[-1:]}[which]]
    rows: list[Row] = []
    for subject, epoch in tracked(plan, "spectrum"):
        sizes, metrics = subject.directory.run.architecture, subject.rows().get(epoch, {})
        for layer, (found, theory) in spectra(subject.network(epoch)).items():
            rows.append(
                {
                    "run": subject.name,
                    "layer": layer,
                    "epoch": epoch,
                    "largest": found.largest,
                    "smallest": found.smallest,
                    "condition": found.condition,
                    "theory": theory,
                    "group": label_of[id(subject)],
                    "model": subject.config.model.name,
                    "seed": subject.seed,
                    "width": sizes.width,
                    "hidden_width": sizes.hidden_width,
                    "connections": sizes.connections,
                    "last_epoch": subject.config.epochs,
                    "train_loss": metrics.get("train_loss"),
                    "test_accuracy": metrics.get("test_accuracy"),
                }
            )
    return rows, table(rows)


def table(rows: Sequence[Row]) -> list[Row]:
    """Average over layers, then over seeds, with 95% intervals over seeds: a row for each group and epoch."""
    found: list[Row] = []
    cells = dict.fromkeys((row["group"], row["epoch"]) for row in rows)
    for group, epoch in cells:
        inside = [row for row in rows if (row["group"], row["epoch"]) == (group, epoch)]
        runs = dict.fromkeys(row["run"] for row in inside)
        layers = dict.fromkeys(row["layer"] for row in inside if "*" not in row["layer"])

        def of_runs(
            key: str, inside: list[Row] = inside, runs: Iterable[str] = tuple(runs), layers: Any = layers
        ) -> list[float]:
            values = [
                [row[key] for row in inside if row["run"] == run and row["layer"] in layers and row[key] is not None]
                for run in runs
            ]
            middle = np.median if key == "condition" else np.mean
            return [float(middle(some)) for some in values if some]

        first = inside[0]
        largest, losses, accuracies = (of_runs(key) for key in ("largest", "train_loss", "test_accuracy"))
        singular = sum(row["smallest"] is not None and row["condition"] is None for row in inside)
        found.append(
            {
                "group": group,
                "model": first["model"],
                "width": first["width"],
                "epoch": epoch,
                "runs": len(runs),
                "largest": _mean(largest),
                "largest_interval": over_seeds(largest),
                "largest_of_all": max(row["largest"] for row in inside),
                "theory": _mean(of_runs("theory")),
                "condition": _mean(of_runs("condition")),
                "singular_layers": singular / len(inside),
                "train_loss": _mean(losses),
                "train_loss_interval": over_seeds(losses),
                "test_accuracy": _mean(accuracies),
                "test_accuracy_interval": over_seeds(accuracies),
            }
        )
    return found


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def draw(document: Sequence[Row], out: Path) -> list[Path]:
    """Draw the largest singular value, condition number and training loss against width, and the first over epochs."""
    from mixersweep.figures import draw_panels, looks_of

    rows = table(document)
    looks = looks_of([row["model"] for row in rows])
    epochs = sorted({row["epoch"] for row in rows})
    panels: list[Any] = [
        lambda axes: _largest(axes, rows, looks),
        lambda axes: _at_end(axes, rows, looks, "condition", "condition number, median of layers"),
    ]
    if any(row["train_loss"] is not None for row in rows):
        panels.append(lambda axes: _at_end(axes, rows, looks, "train_loss", "training loss in nats, last epoch"))
    if len(epochs) > 2:
        panels.append(lambda axes: _course(axes, rows, looks))
    return draw_panels(out, "spectrum", "Singular values of effective weights, at fixed connections", panels)


def _lines(rows: Sequence[Row], epoch: str) -> dict[str, list[Row]]:
    """The rows of each model sorted by width, at the first or last epoch of each group."""
    found: dict[str, list[Row]] = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        inside = sorted((row for row in rows if row["group"] == group), key=lambda row: int(row["epoch"]))
        chosen = inside[0] if epoch == "first" else inside[-1]
        found.setdefault(chosen["model"], []).append(chosen)
    return {model: sorted(some, key=lambda row: int(row["width"])) for model, some in found.items()}


def _largest(axes: Axes, rows: Sequence[Row], looks: Mapping[str, Any]) -> None:
    from mixersweep.figures import INK, band, log_axis

    for model, some in _lines(rows, "last").items():
        if all(row["epoch"] == 0 for row in some):
            continue
        low, high = _edges(some, "largest_interval")
        band(axes, [row["width"] for row in some], [row["largest"] for row in some], low, high, looks[model], model)
    for model, some in _lines(rows, "first").items():
        if any(row["epoch"] for row in some):
            continue
        x = [row["width"] for row in some]
        axes.plot(x, [row["largest"] for row in some], **{**looks[model].line(hollow=True), "linestyle": "none"},
                  label=f"{model}, untrained")  # fmt: skip
        theory = [(row["width"], row["theory"]) for row in some if row["theory"] is not None]
        axes.plot(
            *zip(*theory, strict=True) if theory else ([], []),
            color=INK, linewidth=0.9, linestyle=(0, (4, 2.5)), label="theory of fresh weights",
        )  # fmt: skip
    log_axis(axes, [row["width"] for row in rows])
    framed(axes, [row[key] for row in rows for key in ("largest", "theory") if row[key] is not None])
    axes.set_xlabel("effective width m")
    axes.set_ylabel("largest singular value, mean of layers")


def _at_end(axes: Axes, rows: Sequence[Row], looks: Mapping[str, Any], key: str, label: str) -> None:
    from mixersweep.figures import band, log_axis

    drawn: list[float] = []
    for model, every in _lines(rows, "last").items():
        some = [row for row in every if row[key] is not None]
        if not some:
            continue
        values = [row[key] for row in some]
        low, high = _edges(some, f"{key}_interval")
        band(axes, [row["width"] for row in some], values, low, high, looks[model], model)
        drawn += values
    log_axis(axes, [row["width"] for row in rows])
    if key == "condition":
        axes.set_yscale("log")
    elif drawn:
        framed(axes, drawn)
    axes.set_xlabel("effective width m")
    axes.set_ylabel(label)


def _course(axes: Axes, rows: Sequence[Row], looks: Mapping[str, Any]) -> None:
    """Plot the widest group of each model against epochs."""
    from mixersweep.figures import band, counted

    for model, some in _lines(rows, "last").items():
        widest = some[-1]["group"]
        course = sorted((row for row in rows if row["group"] == widest), key=lambda row: int(row["epoch"]))
        low, high = _edges(course, "largest_interval")
        values = [row["largest"] for row in course]
        band(axes, [row["epoch"] for row in course], values, low, high, looks[model], model)
    counted(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel("largest singular value")
    axes.set_title("the widest of each model", fontsize=9, loc="left")


def _edges(rows: Sequence[Row], key: str) -> tuple[Any, Any]:
    intervals = [row.get(key) for row in rows]
    if any(interval is None for interval in intervals):
        return None, None
    return [interval[0] for interval in intervals if interval], [interval[1] for interval in intervals if interval]
