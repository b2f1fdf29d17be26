"""Simulated sweeps of which the truth is known: the runs of a sweep as the report reads them, without directories.

The networks are real ones, written once; a simulated sweep gives their runs new accuracies and predictions. What a run
gets right is drawn in the four layers that a real one has: what is true of its model and width, an effect of the cell
that all seeds share, one of the seed that all cells share, and the run's own; then, image by image, what is easy, hard
or left to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mixersweep.compose import config_of
from mixersweep.report.claims import Claim, Pair, Trend
from mixersweep.report.recipe import Cell, Comparison, comparisons
from mixersweep.report.statistics import Statistics, statistics
from mixersweep.report.table import collect
from mixersweep.runs import solve
from tests.runs.synthetic import write_run

Row = dict[str, Any]

SEARCH_SEEDS = (100, 101)
CURVE = {0.0316: 0.70, 0.1: 0.80, 0.316: 0.75}
"""Validation accuracy by learning rate: the best inside."""

UNDECIDED = 0.12
"""The share of images that chance decides, around the others, all right or all wrong."""

DRAWS = 1500
"""Fewer than a report takes, for time: with so few claims they decide as well."""

MIXERS = (["model=s_mixer"], ["model=rp_s_mixer"], ["model=pk", "model.tied=false"])
SHARES = ("25%", "37.5%", "50%", "75%", "100%")


def readme_shape() -> list[list[str]]:
    """The README's first sweep: three Mixers on both branches, SW-MLPs at the tall widths and beyond."""
    branches = [f"channels={share}" for share in SHARES] + [f"tokens={share}" for share in SHARES[:3]]
    mixers = [[*mixer, "model.skip_layer=always", size] for mixer in MIXERS for size in branches]
    widths = [f"channels={share}" for share in SHARES] + ["width=200%", "width=400%"]
    return [*mixers, *(["model=sw_mlp", "match=mixer", size] for size in widths)]


def two_models(widths: Sequence[int]) -> list[list[str]]:
    """An S-Mixer and an SW-MLP at the same widths."""
    return [[f"model={model}", "match=mixer", f"width={width}"] for model in ("s_mixer", "sw_mlp") for width in widths]


@dataclass(frozen=True)
class Truth:
    """What is true of a sweep, in shares of 1: ``level`` is the accuracy of a cell, the rest are standard deviations.

    ``run`` is a run's own, ``seed`` that of a seed in all cells, ``cell`` that of a cell in all seeds, ``validation``
    what sets a run's accuracy on validation apart from that on all images.
    """

    level: Callable[[Row], float] = lambda row: 0.85
    run: float = 0.004
    seed: float = 0.001
    cell: float = 0.0
    images: int = 500
    validation: float = 0.003


class Sweep:
    """The runs of a sweep; ``rows`` are those that are reported, by cell and seed, and ``search`` those that chose."""

    def __init__(self, folder: Path, settings: Sequence[Sequence[str]], seeds: int, extra: Sequence[str] = ()) -> None:
        base = ["connections=2**14", "depth=2", "model.head=signed_groups", "optim.lr=0.1", *extra]
        for asked in settings:
            run = solve(config_of([*base, *asked]))
            if not (folder / run.name).exists():
                write_run(folder, run, accuracy=0.85)
        self.first = collect([folder]).rows
        self.rows = [[self.run(row, seed) for seed in range(seeds)] for row in self.first]
        self.search = [
            self.run(row, seed, rate, accuracy)
            for row in self.first
            for rate, accuracy in CURVE.items()
            for seed in SEARCH_SEEDS
        ]

    @staticmethod
    def run(row: Row, seed: int, rate: float = 0.1, validation: float | None = 0.8, state: str = "completed") -> Row:
        """A run of the same network."""
        own = {"seed": seed, "optim.lr": rate, "validation_accuracy": validation, "state": state}
        return {**row, **own, "name": f"{row['name']} {seed} {rate}", "run_dir": f"{row['name']}/{seed}/{rate}"}

    def compared(self) -> list[Comparison]:
        """The comparisons of all runs; filling in accuracies later changes them."""
        return comparisons([*(row for rows in self.rows for row in rows), *self.search])


def accuracies(truth: Truth, cells: Sequence[Sequence[Row]], generator: np.random.Generator) -> list[np.ndarray]:
    """The accuracy of each run on the population of images, cell by cell."""
    seeds = generator.normal(0, truth.seed, 1000)
    return [
        truth.level(rows[0])
        + generator.normal(0, truth.cell)
        + seeds[[row["seed"] for row in rows]]
        + generator.normal(0, truth.run, len(rows))
        for rows in cells
    ]


def predicted(levels: np.ndarray, images: int, generator: np.random.Generator) -> np.ndarray:
    """Which images runs of these accuracies (R,) get right (R, N); the accuracies are those of all images."""
    sure = generator.random(images)
    ease = generator.uniform(-0.3, 0.3, images)
    middle = float(levels.mean())
    share = 0.5 + (levels - middle) / UNDECIDED
    chance = generator.random((len(levels), images), dtype=np.float32) < share[:, None] + ease
    edge = middle - UNDECIDED / 2
    return np.where(sure < edge, True, np.where(sure < edge + UNDECIDED, chance, False))


def simulated(
    made: Sequence[Comparison], truth: Truth, sweeps: int, rng: int, draws: int = DRAWS
) -> Iterator[tuple[Statistics, dict[Cell, float]]]:
    """The reports of sweeps of the same runs, each with what is true of its cells but for their own effects."""
    (comparison,) = made
    cells = list(comparison.cells.values())
    true = {cell: truth.level(rows[0]) for cell, rows in comparison.cells.items()}
    for number in range(sweeps):
        generator = np.random.default_rng([rng, number])
        fill(cells, truth, generator)
        (found,) = statistics([comparison], read=read, draws=draws)
        yield found, true


def report_of(completed: Sequence[Row], others: Sequence[Row] = (), draws: int = DRAWS) -> Statistics:
    """The report of runs that were filled in."""
    (found,) = statistics(comparisons(completed, others), read=read, draws=draws)
    return found


def fill(cells: Sequence[Sequence[Row]], truth: Truth, generator: np.random.Generator) -> None:
    """Give the runs of each cell predictions and accuracies."""
    levels = np.concatenate(accuracies(truth, cells, generator))
    correct = predicted(levels, truth.images, generator)
    validated = levels + generator.normal(0, truth.validation, len(levels))
    rows = [row for own in cells for row in own]
    for row, level, right, validation in zip(rows, levels, correct, validated, strict=True):
        row["level"], row["right"] = float(level), right
        row["test_accuracy"], row["validation_accuracy"] = float(right.mean()), float(validation)


def read(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The predictions of a simulated run."""
    return row["right"], np.zeros(len(row["right"]), dtype=np.int32)


def true_of(claim: Claim, levels: Mapping[Cell, float], widths: Mapping[Cell, int]) -> float:
    """What a claim's estimate is of: the difference of means, or the slope through them."""
    if isinstance(claim, Pair):
        return float(np.mean([levels[one] - levels[other] for one, other in claim.joined]))
    assert isinstance(claim, Trend)
    x = np.log2([widths[cell] for cell in claim.cells])
    x = x - x.mean()
    return float(x @ [levels[cell] for cell in claim.cells] / (x @ x))


def widths_of(comparison: Comparison) -> dict[Cell, int]:
    """The achieved width of each cell."""
    return {cell: rows[0]["width"] for cell, rows in comparison.cells.items()}


def at_most(level: float, sweeps: int) -> int:
    """The most that chance makes of a rate of ``level`` in so many sweeps, but for one time in a thousand."""
    return int(stats.binom.ppf(0.999, sweeps, level))


def at_least(level: float, sweeps: int) -> int:
    """The fewest, likewise."""
    return int(stats.binom.ppf(0.001, sweeps, level))
