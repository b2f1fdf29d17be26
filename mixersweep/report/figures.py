"""Draw the figures of a report as SVG and PNG; for a figure that the runs do not support, the reason is given.

A point is a mean over seeds, a band the 95% interval of that mean (from three seeds on), a faint dot a run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixersweep.figures import INK, framed, looks, scaled
from mixersweep.report.axes import X_AXES, Axis, x_axis, y_axis
from mixersweep.report.canvas import Figure, describe_seeds, interval_of_mean, saved
from mixersweep.report.caveats import CellStatistics
from mixersweep.report.published import Published, held_otherwise, published
from mixersweep.report.recipe import Comparison, Row
from mixersweep.report.statistics import Statistics
from mixersweep.report.structures import FEWEST, draw_structures
from mixersweep.report.table import curve
from mixersweep.runs.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 24
"""The most training curves in one figure."""

LOSSES = ("test_loss", "train_loss")


@dataclass
class Gallery:
    """The figures that were drawn, and for those that were not the reason, by name."""

    figures: list[Figure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


class NotShown(Exception):
    """Raised, with the reason as its text, where the runs do not support a figure."""


def draw(all_statistics: Sequence[Statistics], out: Path | None, x: str, y: str, with_published: bool) -> Gallery:
    """Draw every figure that the runs support, the main one first; with ``out``, write their files there."""
    gallery = Gallery()
    main = all_statistics[0]
    artist = Artist(all_statistics, y_axis(y))
    overlay = published(main.comparison, x, y) if with_published else []

    wanted: list[tuple[str, str, Callable[[Axes], str]]] = [
        (f"{x}_vs_{y}", artist.title(x, main), partial(artist.against, x=x, overlay=overlay))
    ]
    for number, other in enumerate(all_statistics[1:6], start=2):
        if len(other.cells) > 1 and x in SIZES:
            name = f"{x}_vs_{y}-{number}"
            wanted.append((name, artist.title(x, other), partial(artist.against, x=x, statistics=other)))
    for size in ("width", "channels_over_tokens"):
        wanted.append((f"{size}_vs_{y}", artist.title(size, main), partial(artist.against, x=size)))
    for size, held in (("parameters", "connections"), ("connections", "parameters")):
        wanted.append((f"{size}_vs_{y}", artist.at_equal_title(held), partial(artist.at_equal, x=size, held=held)))
    wanted.append((f"depth_vs_{y}", artist.title("depth", main), partial(artist.against, x="depth")))
    wanted.append(("training_curves", f"Training curves: {main.comparison.name}", artist.curves))
    wanted.append(("learning_rate_sensitivity", f"Learning rates: {main.comparison.name}", artist.rates))
    for size in ("flops_per_image", "seconds"):
        wanted.append((f"{size}_vs_{y}", artist.title(size, main), partial(artist.against, x=size)))
    if with_published and not overlay:
        gallery.left_out["published"] = f"the papers plot no curve of these models that has {x} and {y} on its axes"
    first: dict[str, tuple[str, Callable[[Axes], str]]] = {}
    for name, title, make in wanted:
        first.setdefault(name, (title, make))
    for name, (title, drawn) in first.items():
        try:
            gallery.figures.append(saved(name, title, out, drawn))
        except NotShown as reason:
            gallery.left_out[name] = str(reason)
    if len(main.comparison.variants) >= FEWEST:
        gallery.figures.insert(1, draw_structures(main, y_axis(y), f"structure_vs_{y}", out))
    return gallery


SIZES = (
    "width hidden_width density connections weights total_connections parameters mixing_parameters mean_fan_in tokens "
    "channels channels_over_tokens expansion flops_per_image seconds peak_memory_bytes"
).split()
"""The x axes along which runs of one comparison differ; along any other, comparisons are put side by side."""


MEASURED = ("seconds", "peak_memory_bytes")
"""The x axes that are measured, not chosen, so that no line joins the points."""


class Artist:
    """Draws the figures: each drawing method takes axes and returns the caption."""

    def __init__(self, all_statistics: Sequence[Statistics], y: Axis) -> None:
        self.all = all_statistics
        self.main = all_statistics[0]
        self.y = y
        named = {label: v["model"] for s in all_statistics for label, v in s.comparison.variants.items()}
        self.looks = looks(named.items())

    def title(self, x: str, statistics: Statistics) -> str:
        """The title of a figure: what the comparison holds fixed."""
        name = statistics.comparison.name
        return name.rpartition(", depth")[0] if x == "depth" else name

    def against(
        self, axes: Axes, x: str, overlay: Sequence[Published] = (), statistics: Statistics | None = None
    ) -> str:
        """Draw y against a size of the network, a line for each model; or against a setting, across comparisons."""
        axis, statistics = x_axis(x), statistics or self.main
        lines = self.lines(x, statistics, alone=bool(overlay))
        values = {value for points in lines.values() for value, _ in points}
        for (label, branch), points in lines.items():
            self._line(axes, label, branch, points, x in MEASURED)
        for series in overlay:
            look = self.looks.get(series.variant) or next(iter(self.looks.values()))
            axes.plot(series.x, series.y, label=series.label, zorder=2, **look.line(published=True))
        if x == "channels_over_tokens":
            axes.axvline(1, color=INK, linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
            axes.annotate(
                "widest: C = S", (1, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip
        beside = [v for series in overlay for v in series.x]
        scaled(axes, axis.label, [*values, *beside], axis.log, whole=axis.key == "depth")
        shown = [
            v
            for points in lines.values()
            for _, cell in points
            for row in cell.rows
            if (v := self.y.of(row)) is not None
        ]
        framed(axes, [*shown, *(v for series in overlay for v in series.y)])
        axes.set_ylabel(self.y.label)
        dataset = statistics.comparison.fixed.get("data.name")
        caption = f"{_sentence(self.y.label)} against {axis.label}; {describe_seeds(statistics.cells, x in MEASURED)}."
        if overlay:
            sets = ", ".join(sorted({series.dataset for series in overlay}))
            caption += f" Dashed and hollow: published curves on {sets}; the runs here are on {dataset}."
            caption += f" {held}" if (held := held_otherwise(statistics.comparison)) else ""
        if x in ("width", "channels_over_tokens") and _one_variable(statistics.comparison):
            caption += " At γ = 1 and fixed Ω, a Mixer's width determines its C / S: their effects are not separated."
        if x not in SIZES:
            caption += " Each line is of one width."
        if any(not cell.is_claimable for cells in lines.values() for _, cell in cells):
            caption += " Crossed out: mean fan-in below 4, in no test or trend."
        return caption

    def lines(
        self, x: str, statistics: Statistics | None = None, alone: bool = False
    ) -> dict[tuple[str, str | None], list[tuple[float, CellStatistics]]]:
        """The points of each (model, branch).

        Raises ``NotShown`` where no run has ``x``, and where all have the same one, unless ``alone`` allows that.
        """
        axis, statistics = x_axis(x), statistics or self.main
        lines = self._lines(statistics.cells) if x in SIZES else self._across(x)
        found = {name: _points(axis, cells) for name, cells in lines.items()}
        found = {name: points for name, points in found.items() if points}
        values = {value for points in found.values() for value, _ in points}
        if not values:
            raise NotShown(f"none of the compared runs has {x}")
        if len(values) < 2 and not alone:
            raise NotShown(f"all compared runs have {x}={values.pop():g}")
        return found

    def at_equal_title(self, held: str) -> str:
        """The title of ``at_equal``."""
        found = next((s for s in self.all if s.comparison.budget == held), None)
        return f"At equal {held}" + (f": {found.comparison.name}" if found else "")

    def at_equal(self, axes: Axes, x: str, held: str) -> str:
        """Draw y against parameters at equal connections, or against connections at equal parameters."""
        found = next((s for s in self.all if s.comparison.budget == held), None)
        if found is None:
            raise NotShown(f"no run was made with budget={held}")
        return self.against(axes, x, statistics=found)

    def curves(self, axes: Axes) -> str:
        """Draw training loss (thin) and test loss (thick) by epoch for each model at its widest, means over seeds."""
        drawn = []
        for (label, branch), cells in list(self._lines(self.main.cells).items())[:CURVES]:
            widest = max(cells, key=lambda cell: cell.mean["width"])
            rows = [rows for rows in map(curve, widest.rows) if rows]
            epochs = min(map(len, rows), default=0)
            if epochs < 2 or (branch == "wide" and widest.cell[2] == "square"):
                continue
            look = self.looks[label]
            number = [row["epoch"] for row in rows[0][:epochs]]
            test, train = (np.mean([[row[key] for row in run[:epochs]] for run in rows], 0) for key in LOSSES)
            name = f"{_line_label(label, branch)}, m = {widest.mean['width']:,.0f}"
            axes.plot(number, test, label=name, markevery=[-1], **look.line(hollow=branch == "wide"))
            axes.plot(number, train, color=look.colour, linewidth=0.9, linestyle=look.dash)
            drawn.append(label)
        if not drawn:
            raise NotShown("no compared run has metrics of two epochs")
        scaled(axes, "epoch", number, whole=True)
        axes.set_ylabel("loss in nats")
        return "Loss by epoch, each model at its widest, mean over seeds: test thick, training thin."

    def rates(self, axes: Axes) -> str:
        """Draw validation accuracy against learning rate, a line for each model and width trained at several rates."""
        tried: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        comparison = self.main.comparison
        cells = {id(row): cell for cell, rows in comparison.cells.items() for row in rows}
        labels = {_network(row): cell for cell, rows in comparison.cells.items() for row in rows}
        for row in [*comparison.rows, *comparison.searched]:
            cell = cells.get(id(row)) or labels.get(_network(row))
            if cell and row["validation_accuracy"] is not None:
                tried[cell[0], row["width"]][row["optim.lr"]].append(100 * row["validation_accuracy"])
        diverged = defaultdict(set)
        for row in comparison.unfinished:
            cell = labels.get(_network(row))
            if cell and row["state"] == State.DIVERGED:
                diverged[cell[0], row["width"]].add(row["optim.lr"])
        shown = {k: rates for k, rates in tried.items() if len(rates) + len(diverged[k] - set(rates)) > 1}
        if not shown:
            raise NotShown("every width was trained at one learning rate")
        shown = dict(list(shown.items())[:CURVES])
        widths = sorted({width for _, width in shown})
        lowest = min(min(map(float, map(np.mean, rates.values()))) for rates in shown.values())
        for (label, width), rates in sorted(shown.items()):
            look = self.looks[label]
            x = sorted(rates)
            strength = 1 - 0.6 * (len(widths) - 1 - widths.index(width)) / max(1, len(widths) - 1)
            style = {**look.line(), "alpha": strength, "label": f"{label}, m = {width:,}"}
            axes.plot(x, [np.mean(rates[rate]) for rate in x], **style)
            gone = sorted(diverged[label, width])
            axes.plot(gone, [lowest] * len(gone), "x", color=look.colour, markersize=8, markeredgewidth=2)
        tried_rates = [*(r for rates in shown.values() for r in rates), *set().union(*diverged.values())]
        scaled(axes, X_AXES["optim.lr"].label, tried_rates, X_AXES["optim.lr"].log)
        axes.set_ylabel("validation accuracy in %")
        crosses = "; a cross at the bottom is a run that diverged" if any(diverged.values()) else ""
        return f"Validation accuracy against learning rate, a line for each model and width, mean over seeds{crosses}."

    def _line(
        self,
        axes: Axes,
        label: str,
        branch: str | None,
        points: list[tuple[float, CellStatistics]],
        measured: bool,
    ) -> None:
        look = self.looks[label]
        xs = [value for value, _ in points]
        values = [[v for row in cell.rows if (v := self.y.of(row)) is not None] for _, cell in points]
        means = [float(np.mean(v)) if v else np.nan for v in values]
        style = look.line(hollow=branch == "wide")
        if measured:  # measured values have no order that a line could follow
            style["linestyle"] = "none"
        axes.plot(xs, means, label=_line_label(label, branch), zorder=4, **style)
        bands = [None if measured else interval_of_mean(v) for v in values]
        low, high = zip(*(band or (np.nan, np.nan) for band in bands), strict=True)
        axes.fill_between(xs, low, high, where=np.isfinite(low), color=look.colour, alpha=0.15, linewidth=0, zorder=2)
        for number, (x, own, (_, cell)) in enumerate(zip(xs, values, points, strict=True)):
            neighbours = [bands[i] for i in (number - 1, number + 1) if 0 <= i < len(bands)]
            if bands[number] is not None and not any(neighbours):
                axes.plot([x, x], [low[number], high[number]], color=look.colour, alpha=0.5, linewidth=1, zorder=2)
            axes.plot([x] * len(own), own, look.marker, color=look.colour, markersize=2.5, alpha=0.45, zorder=3)
            if not cell.is_claimable:
                axes.plot([x], [np.mean(own)], "x", color=INK, markersize=9, markeredgewidth=1, zorder=5)

    def _lines(self, cells: Sequence[CellStatistics]) -> dict[tuple[str, str | None], list[CellStatistics]]:
        """The cells of each (model, branch); where a model has no wide Mixers the branch is None."""
        found: dict[tuple[str, str | None], list[CellStatistics]] = defaultdict(list)
        for label in dict.fromkeys(cell.cell[0] for cell in cells):
            own = [cell for cell in cells if cell.cell[0] == label]
            shapes = {cell.cell[2] for cell in own}
            for branch in [b for b in ("tall", "wide") if b in shapes] if "wide" in shapes else [None]:
                found[label, branch] = [c for c in own if branch is None or c.cell[2] in (branch, "square")]
        return dict(found)

    def _across(self, x: str) -> dict[tuple[str, str | None], list[CellStatistics]]:
        """The cells of each model along a setting in which comparisons differ, at the width that most of them have."""
        key = {"connections": "connections_target", "weights": "weights_target"}.get(x, x)
        first = self.main.comparison
        beside = [s for s in self.all if set(s.comparison.differs) <= {key}]
        found: dict[tuple[str, str | None], list[CellStatistics]] = {}
        for label in first.variants:
            counts: dict[tuple[int, str | None], list[CellStatistics]] = defaultdict(list)
            for statistics in beside:
                for cell in statistics.cells:
                    if cell.cell[0] == label:
                        counts[cell.cell[1:]].append(cell)
            if counts:
                best = max(counts, key=lambda size: (len(counts[size]), size[0]))
                if len(counts[best]) > 1:
                    found[f"{label}", None] = counts[best]
        if not found:
            raise NotShown(f"all compared runs have {x}={first.fixed.get(key)}")
        return found


def _network(row: Row) -> tuple[Any, ...]:
    """The network of a run: what identifies it but for seed and learning rate."""
    settings = {n: v for n, v in row["settings"].items() if n.startswith("model.")}
    return row["model"], row["width_target"], row["shape"], row["expansion"], str(sorted(settings.items()))


def _line_label(label: str, branch: str | None) -> str:
    return f"{label} ({branch})" if branch else label


def _points(axis: Axis, cells: Sequence[CellStatistics]) -> list[tuple[float, CellStatistics]]:
    points = [(value, cell) for cell in cells if (value := axis.of(cell.mean)) is not None]
    return sorted(points, key=lambda point: point[0])


def _one_variable(comparison: Comparison) -> bool:
    mixers = [row for row in comparison.rows if row["shape"]]
    return bool(mixers) and all(row["expansion"] == 1 for row in mixers) and comparison.budget == "connections"


def _sentence(label: str) -> str:
    return label[0].upper() + label[1:]
