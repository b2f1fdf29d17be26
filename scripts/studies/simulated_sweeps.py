"""Simulated sweeps of known truth: how often a report claims what is not so, and how often it finds what is.

The networks are real and never trained: their accuracies and predictions are drawn (``tests/report/simulated.py``), by
what is true of a cell (a model at a width), a normal effect of the cell that all its seeds share, one of the seed that
all cells share, and one of the run; then image by image. Two questions:

- *No effect*: the shape of a real experiment, three Mixers on the tall and the wide branch and SW-MLPs at seven widths,
  7 trends and 6 pairs, all of equal accuracy. How many reports make a claim, and how many 95% intervals contain 0?
- *An effect*: two models at five widths that differ by so many points, and each rises by as many from the narrowest to
  the widest. How many reports claim it, and how many 95% intervals contain the truth?

From the root of the repository, in about twenty minutes on one core:

    python -m scripts.studies.simulated_sweeps [--sweeps 400] [--out DIR]

DIR then holds ``simulated_sweeps.json``, a table (CSV, Markdown) and a figure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from mixersweep.analysis.output import folder, tracked, write
from mixersweep.figures import draw_panels
from mixersweep.figures.palette import BLUE, GREEN, GREY, ORANGE
from mixersweep.report.claims import ALPHA, Claim, Pair
from mixersweep.report.recipe import Comparison
from tests.report.simulated import Row, Sweep, Truth, readme_shape, simulated, true_of, two_models, widths_of

WIDTHS = (426, 520, 572, 608, 644)
EFFECTS = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03)
"""Shares of 1: from nothing to three points."""


@dataclass(frozen=True)
class Spread:
    """The number of seeds, and the standard deviations of a run and of a cell, in shares of 1."""

    seeds: int
    run: float
    cell: float

    def __str__(self) -> str:
        return f"{self.seeds} seeds, run {100 * self.run:.1f}, cell {100 * self.cell:.1f}"


WITHOUT_EFFECT = (
    Spread(5, 0.005, 0.0),
    Spread(3, 0.005, 0.0),
    Spread(5, 0.003, 0.0),
    Spread(5, 0.003, 0.001),
    Spread(5, 0.003, 0.002),
    Spread(5, 0.003, 0.003),
    Spread(3, 0.003, 0.003),
    Spread(5, 0.003, 0.005),
)
WITH_EFFECT = (Spread(5, 0.003, 0.0), Spread(3, 0.003, 0.0), Spread(5, 0.003, 0.002))


@dataclass
class Share:
    """How many of how many, with a 95% interval (Clopper & Pearson 1934)."""

    hits: int = 0
    tried: int = 0

    def add(self, hit: bool) -> None:
        """Count one more trial."""
        self.hits += hit
        self.tried += 1

    @property
    def value(self) -> float:
        """The share of hits."""
        return self.hits / self.tried

    @property
    def interval(self) -> tuple[float, float]:
        """The exact binomial interval."""
        low, high = stats.binomtest(self.hits, self.tried).proportion_ci()
        return float(low), float(high)


def without_effect(compared: Sequence[Comparison], spread: Spread, sweeps: int) -> Row:
    """Simulate sweeps without any effect; returns the shares of reports with a claim and of intervals that hold 0."""
    counts = {name: Share() for name in ("trend", "pair", "claim", "uncorrected", "covered")}
    truth = Truth(run=spread.run, cell=spread.cell)
    for found, _ in simulated(compared, truth, sweeps, rng=100 * spread.seeds):
        decided = {kind: any(claim.is_decided for claim in getattr(found, f"{kind}s")) for kind in ("trend", "pair")}
        counts["trend"].add(decided["trend"])
        counts["pair"].add(decided["pair"])
        counts["claim"].add(any(decided.values()))
        claims: list[Claim] = [*found.trends, *found.pairs]
        counts["uncorrected"].add(any((claim.effect.p or 0.0) <= ALPHA for claim in claims))
        for claim in claims:
            counts["covered"].add(_covers(claim, 0.0))
    return {
        "truth": "no effect",
        **_columns(spread, sweeps),
        "reports with a false trend": counts["trend"].value,
        "with a false pair": counts["pair"].value,
        "with a false claim": counts["claim"].value,
        "its interval": counts["claim"].interval,
        "with a p below .05 before correction": counts["uncorrected"].value,
        "coverage": counts["covered"].value,
    }


def with_effect(compared: Sequence[Comparison], spread: Spread, effect: float, sweeps: int) -> Row:
    """Simulate sweeps of two models that differ, and rise, by ``effect``; returns the shares that a report finds."""
    widths = widths_of(compared[0])
    doublings = np.log2(max(widths.values()) / min(widths.values()))
    middle = np.log2(list(widths.values())).mean()

    def level(row: Row) -> float:
        above = effect / 2 if row["model"] == "s_mixer" else -effect / 2
        return 0.85 + above + effect * float(np.log2(row["width"]) - middle) / doublings

    counts = {f"{kind} {what}": Share() for kind in ("trend", "pair") for what in ("claimed", "covered")}
    truth = Truth(level, run=spread.run, cell=spread.cell)
    for found, levels in simulated(compared, truth, sweeps, rng=100 * spread.seeds + 1):
        claims: list[Claim] = [*found.trends, *found.pairs]
        for claim in claims:
            kind = "pair" if isinstance(claim, Pair) else "trend"
            counts[f"{kind} claimed"].add(claim.is_decided)
            counts[f"{kind} covered"].add(_covers(claim, true_of(claim, levels, widths)))
    return {
        "truth": "an effect",
        **_columns(spread, sweeps),
        "points": 100 * effect,
        "trends claimed": counts["trend claimed"].value,
        "pairs claimed": counts["pair claimed"].value,
        "pairs, interval": counts["pair claimed"].interval,
        "trends covered": counts["trend covered"].value,
        "pairs covered": counts["pair covered"].value,
    }


def _covers(claim: Claim, truth: float) -> bool:
    assert claim.effect.interval is not None
    low, high = claim.effect.interval
    return low <= truth <= high


def _columns(spread: Spread, sweeps: int) -> Row:
    return {"seeds": spread.seeds, "sd of a run": 100 * spread.run, "of a cell": 100 * spread.cell, "sweeps": sweeps}


def study(sweeps: int) -> Iterator[Row]:
    """Yield a row for each setting, those without an effect first."""
    with tempfile.TemporaryDirectory() as scratch:
        shapes = {
            (seeds, name): Sweep(Path(scratch) / name, settings, seeds).compared()
            for seeds in (3, 5)
            for name, settings in (("experiment", readme_shape()), ("two", two_models(WIDTHS)))
        }
        settings = [(spread, None) for spread in WITHOUT_EFFECT]
        settings += [(spread, effect) for spread in WITH_EFFECT for effect in EFFECTS]
        for spread, effect in tracked(settings, "settings"):
            if effect is None:
                yield without_effect(shapes[spread.seeds, "experiment"], spread, sweeps)
            else:
                yield with_effect(shapes[spread.seeds, "two"], spread, effect, sweeps)


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw false claims, coverage, and the effects that are found."""
    none = [row for row in rows if row["truth"] == "no effect"]
    some = [row for row in rows if row["truth"] == "an effect"]
    panels = [
        lambda axes: _draw_false(axes, none),
        lambda axes: _draw_coverage(axes, none, some),
        lambda axes: _draw_found(axes, some),
    ]
    title = "Reports of simulated sweeps; standard deviations in points"
    return draw_panels(out, "simulated_sweeps", title, panels, wide=4.6)


def _draw_false(axes: Axes, rows: Sequence[Row]) -> None:
    heights = range(len(rows), 0, -1)
    shares = np.array([row["with a false claim"] for row in rows])
    low, high = np.array([row["its interval"] for row in rows]).T
    axes.errorbar(
        shares, heights, xerr=(shares - low, high - shares), fmt="o", color=BLUE, capsize=3, label="after Holm"
    )
    raw = [row["with a p below .05 before correction"] for row in rows]
    axes.plot(raw, heights, "x", color=GREY, label="a p ≤ .05 before Holm")
    axes.axvline(ALPHA, color=ORANGE, linewidth=1)
    names = [f"{row['seeds']}; {row['sd of a run']:.1f}; {row['of a cell']:.1f}" for row in rows]
    axes.set_yticks(list(heights), names, fontsize=8)
    axes.set_ylabel("seeds; standard deviation of a run; of a cell")
    axes.set_xlabel("share of reports with a false claim")
    axes.set_title("no effect: 7 trends and 6 pairs", fontsize=9, loc="left")


def _draw_coverage(axes: Axes, none: Sequence[Row], some: Sequence[Row]) -> None:
    axes.axhline(0.95, color=ORANGE, linewidth=1)
    for at, row in enumerate(none):
        axes.plot(at, row["coverage"], "o", color=GREY, label="no effect" if at == 0 else None)
    for at, row in enumerate(some, len(none)):
        first = at == len(none)
        axes.plot(at, row["trends covered"], "^", color=GREEN, label="trends with an effect" if first else None)
        axes.plot(at, row["pairs covered"], "s", color=BLUE, label="pairs with an effect" if first else None)
    axes.set_ylim(0.88, 1.0)
    axes.set_xticks([])
    axes.set_xlabel("setting, in the order of the table")
    axes.set_title("share of 95% intervals that contain the truth", fontsize=9, loc="left")


def _draw_found(axes: Axes, rows: Sequence[Row]) -> None:
    for spread, colour in zip(WITH_EFFECT, (BLUE, ORANGE, GREEN), strict=True):
        own = [row for row in rows if _columns(spread, row["sweeps"]).items() <= row.items()]
        points = [row["points"] for row in own]
        axes.plot(points, [row["pairs claimed"] for row in own], "o-", color=colour, label=f"pair; {spread}")
        axes.plot(points, [row["trends claimed"] for row in own], "^:", color=colour, label=f"trend; {spread}")
    axes.set_xlabel("true difference, and true rise, in points")
    axes.set_title("share of claims that are made", fontsize=9, loc="left")


def main(arguments: Sequence[str]) -> None:
    """Run the study as a command."""
    parser = argparse.ArgumentParser(description="Reports of simulated sweeps whose truth is known.")
    parser.add_argument("--sweeps", type=int, default=400, help="simulated sweeps a setting (400)")
    parser.add_argument("--out", type=Path, default=Path("analysis/simulated_sweeps"), help="where the files go")
    options = parser.parse_args(arguments)
    if options.sweeps < 1:
        parser.error(f"--sweeps {options.sweeps}: at least 1")
    out = folder(options.out)
    rows = list(study(options.sweeps))
    document: dict[str, Any] = {"sweeps": options.sweeps, "rows": rows}
    path = write(out, "simulated_sweeps", document, rows)
    draw(rows, out)
    worst = max(row["with a false claim"] for row in rows if row["truth"] == "no effect")
    print(f"at most {100 * worst:.1f}% of reports claim something where there is nothing", file=sys.stderr)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
