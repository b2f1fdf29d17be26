"""The curves published by the papers, to draw beside the runs' own; data and recipe differ, so each label says so.

``published_curves.csv`` holds values read off vector figures of Hayase & Karakida 2024 (accurate to about 0.001).
Fig. 4, Fig. S.2 and Table 1 plot the hidden width γ·m, the others the width m; each is converted by its own expansion.

The papers fix the connections Ω by the formula for square layers. Runs under another budget are compared with the
series nearest in Ω by that formula, and ``held_otherwise`` says what the runs fix.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import median
from typing import Any

from mixersweep.report.recipe import Comparison


@dataclass(frozen=True)
class Published:
    """One published series: ``x`` and ``y`` in the units of the axes; ``variant`` labels the runs' own line."""

    label: str
    variant: str
    dataset: str
    figure: str
    x: list[float]
    y: list[float]


def published(comparison: Comparison, x: str, y: str) -> list[Published]:
    """The published series of the compared models, on the same data set where there are some, else on CIFAR-10.

    For each figure and model it is the series whose connections are nearest to the runs' own. There are none where no
    published figure has ``x`` as an axis, or for a ``y`` other than accuracy and error.
    """
    if y not in ("accuracy", "error"):
        return []
    variants: dict[str, str] = {}
    for label, variant in comparison.variants.items():
        variants.setdefault(_published_name(variant), label)
    points: dict[tuple[str, str, str, float], list[tuple[float, float]]] = defaultdict(list)
    for row in curves():
        value, accuracy = _x_of(row, x), _accuracy(row)
        if row["model"] in variants and value is not None and accuracy is not None:
            key = (row["model"], row["figure"], row["dataset"], float(row["connections"]))
            points[key].append((value, 100 * (accuracy if y == "accuracy" else 1 - accuracy)))
    datasets = {dataset for _, _, dataset, _ in points}
    own = str(comparison.fixed.get("data.name"))
    dataset = own if own in datasets else "cifar10"
    target = comparison.fixed.get("connections_target") or median(row["connections"] for row in comparison.rows)
    nearest: dict[tuple[str, str], float] = {}
    for model, figure, found, connections in points:
        if found == dataset:
            best = nearest.get((model, figure), connections)
            nearest[model, figure] = min((best, connections), key=lambda c: abs(math.log(c / target)))
    series = []
    for (model, figure), connections in sorted(nearest.items()):
        values = sorted(points[model, figure, dataset, connections])
        label = f"published {model}, {dataset}, Ω {connections:,.0f}, {_shown(figure)}"
        xs, ys = [value for value, _ in values], [value for _, value in values]
        series.append(Published(label, variants[model], dataset, figure, xs, ys))
    return series


def held_otherwise(comparison: Comparison) -> str:
    """The sentence that says how the runs' budget differs from the papers'; empty where it does not."""
    if comparison.target == "connections_target":
        return ""
    own = [row["connections"] for row in comparison.rows]
    spread = f"{min(own):,.0f}" + (f" to {max(own):,.0f}" if max(own) > min(own) else "")
    return (
        f"The papers hold Ω fixed, by the formula of square layers; the runs here hold {comparison.held}: Ω {spread}."
    )


@cache
def curves() -> list[dict[str, str]]:
    """The rows of ``published_curves.csv``."""
    text = (files("mixersweep.report") / "published_curves.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _published_name(variant: Mapping[str, Any]) -> str:
    """The papers' name for a network: ``pk`` with the right settings is one of their Mixers."""
    model = str(variant["model"])
    if model != "pk" or not variant.get("tied") or variant.get("random_layers") not in ("none", "both"):
        return model
    return ("rp_" if variant["random_layers"] == "both" else "") + ("mixer" if variant["hidden"] else "s_mixer")


def _x_of(row: Mapping[str, str], wanted: str) -> float | None:
    """The value on the ``wanted`` axis, as printed or converted by the series' expansion and connections; else None."""
    name, value = row["x_name"], float(row["x"])
    if name == wanted:
        return value
    expansion = float(row["expansion"]) if row["expansion"] else None
    connections = float(row["connections"]) if row["connections"] else None
    if expansion is None or name not in ("width", "hidden_width"):
        return None
    width = value / expansion if name == "hidden_width" else value
    if wanted == "width":
        return width
    if wanted == "hidden_width":
        return width * expansion
    if wanted == "density" and connections is not None:
        return connections / (expansion * width**2)
    return None


def _accuracy(row: Mapping[str, str]) -> float | None:
    if not row["connections"]:
        return None
    value = float(row["value"])
    return {"test_error": 1 - value, "test_accuracy": value}.get(row["metric"])


def _shown(figure: str) -> str:
    return figure if figure.startswith("Table") else f"Fig. {figure.replace('-', ' ').replace('S', 'S.')}"
