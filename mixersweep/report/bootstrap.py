"""Intervals for sums over runs, by resampling seeds and test images together.

Every number that a report compares is a *contrast*: a weighted sum of the accuracies of runs, such as a mean over
seeds, a difference of two models pooled over widths, or a slope on log width. The runs are a grid of seeds by test
images, both of them samples: other seeds and other images would have given other numbers.

One draw resamples the seeds (the same for every width and model, since runs of one seed share their split and order)
and the test images (the same for all runs, since there is one test set). Two corrections make the percentiles of the
draws cover what they claim with as few seeds as people train:

- Percentiles of n resampled seeds are too narrow: 95% ones of 3 seeds cover 76%. The deviation due to seeds is
  therefore divided by the square root of χ²/(n-1), drawn anew each time, after the usual factor √(n/(n-1)): for
  normal seeds that is Student's t, and for many seeds the plain bootstrap.
- The chance of single predictions lies in the spread over seeds *and* in that over images, so that their sum counts
  it twice (Owen 2007). Its share, from the residuals of the two-way layout, is taken out of the images'.

What is fixed for a cell (a model at one width) whatever the seed, such as a learning rate that two seeds chose or a
size that integers rounded, is no spread over seeds. Where it could be estimated (``between``), a draw adds a normal
effect to each cell, of a variance that is as uncertain as the widths were few.

The three deviations are added, each with its own uncertainty. That is cautious: in simulated sweeps of known truth 95%
intervals cover 96% to 99%. One Student's t with Satterthwaite's degrees of freedom for their sum finds effects that are
9% to 24% smaller and covers 94% to 98%, but its tail, in which Holm's correction looks, is too light: of 150 simulated
reports without any effect, of 3 and of 5 seeds, with effects of the cells and without, 5% to 9% then claimed one, and
with the sum 0% to 2%.

Everything is drawn from a fixed seed: the same table gives the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixersweep.seeds import derive

DRAWS = 10_000
LEVEL = 0.95
_BLOCK = 256
_DIGITS = 12
"""Sums that would be 0 in exact arithmetic are 0."""

DRAWS_A_CLAIM = 400
"""At least so many draws for each claim of a report: the smallest p that they allow is then far below 5% of Holm's."""

POWER = 0.8
"""How often an effect of the size that ``Estimate.detectable`` names would be shown."""

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class CellEffect:
    """The random effect of a cell, alike for all its seeds: its variance and the degrees of freedom behind that."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Estimate:
    """A contrast with its two intervals: over seeds with these test images, and over both.

    ``seeds`` and ``runs`` are what it was made of, ``images`` the test images (None where predictions are missing).
    Intervals are None with one seed, those over images also without predictions. ``p`` is of no contrast at all, two-
    sided, from the same draws as the wider interval that there is, and no smaller than ``smallest_p`` since there are
    no more draws. ``detectable`` is the smallest effect that would have been shown four times in five, with
    Bonferroni's correction for as many claims as the report makes (Holm's is never stricter).
    """

    value: float
    seeds: int
    runs: int
    images: int | None
    over_seeds: Interval | None = None
    over_seeds_and_images: Interval | None = None
    p: float | None = None
    smallest_p: float | None = None
    detectable: float | None = None

    @property
    def interval(self) -> Interval | None:
        """Over seeds and images where the predictions are there, else over seeds."""
        return self.over_seeds_and_images or self.over_seeds

    @property
    def at_floor(self) -> bool:
        """Whether p is the smallest that the draws allow: the true one may be smaller."""
        return self.p is not None and self.smallest_p is not None and self.p <= self.smallest_p

    def scaled(self, factor: float) -> Estimate:
        """The same contrast in another unit, or turned round by a negative ``factor``."""

        def of(interval: Interval | None) -> Interval | None:
            if interval is None:
                return None
            low, high = sorted(bound * factor for bound in interval)
            return low, high

        return dataclasses.replace(
            self,
            value=self.value * factor,
            over_seeds=of(self.over_seeds),
            over_seeds_and_images=of(self.over_seeds_and_images),
            detectable=None if self.detectable is None else self.detectable * abs(factor),
        )


def draws_for(claims: int) -> int:
    """How many draws a report of so many claims takes."""
    return max(DRAWS, DRAWS_A_CLAIM * claims)


def estimate(
    contrasts: ArrayLike,
    accuracy: ArrayLike,
    cells: ArrayLike,
    seeds: ArrayLike,
    correct: NDArray[np.bool_] | None = None,
    *,
    between: Sequence[CellEffect | None] | None = None,
    claims: int = 1,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> list[Estimate]:
    """Estimate K contrasts of R runs.

    ``contrasts`` (K, R) are the weights, ``accuracy`` (R,), ``cells`` and ``seeds`` (R,) label the runs: those of a
    cell differ in their seed alone. ``correct`` (R, N) says which test images each run got right. ``between`` is the
    random effect of the cells, for each contrast that goes over them, ``claims`` how many are made at once. A contrast
    that leans on a cell of one run has no intervals.
    """
    weights, accuracies, cell_of, seed_of = _arrays(contrasts, accuracy, cells, seeds)
    values = np.round(weights @ accuracies, _DIGITS)
    parts = [_Parts.of(row, accuracies, cell_of, seed_of, correct) for row in weights]
    spread = any(part.influence is not None for part in parts)
    by_images = None if correct is None or not spread else _image_deviations(weights, correct, draws)
    effects = [None] * len(weights) if between is None else between
    by_cells = {effect: _cell_deviations(effect, draws) for effect in effects if effect is not None}
    by_seeds: dict[int, tuple[NDArray[np.int64], Floats]] = {}
    found = []
    for k, part in enumerate(parts):
        images = None if correct is None else correct.shape[1]
        if part.influence is None:
            found.append(Estimate(float(values[k]), part.seeds, part.runs, images))
            continue
        if part.seeds not in by_seeds:
            by_seeds[part.seeds] = _seed_draws(part.seeds, draws)
        counts, scale = by_seeds[part.seeds]
        deviation = ((counts - 1) @ part.influence) * scale
        if (effect := effects[k]) is not None:
            deviation = deviation + part.over_cells * by_cells[effect]
        over_seeds = _percentiles(values[k] + deviation, level)
        both = None
        if by_images is not None:
            deviation = deviation + part.images_own * by_images[k]
            both = _percentiles(values[k] + deviation, level)
        p = two_sided(np.round(values[k] + deviation, _DIGITS))
        decided, seen = np.quantile(np.abs(deviation), [1 - (1 - level) / claims, 2 * POWER - 1])
        detectable = round(float(decided + seen), _DIGITS)
        smallest = 2 / (draws + 1)
        found.append(
            Estimate(float(values[k]), part.seeds, part.runs, images, over_seeds, both, p, smallest, detectable)
        )
    return found


def variances(
    contrasts: ArrayLike,
    accuracy: ArrayLike,
    cells: ArrayLike,
    seeds: ArrayLike,
    correct: NDArray[np.bool_] | None = None,
) -> Floats:
    """How much seeds and test images let K contrasts vary (K,); NaN where a cell has one run."""
    weights, accuracies, cell_of, seed_of = _arrays(contrasts, accuracy, cells, seeds)
    found = []
    for row in weights:
        part = _Parts.of(row, accuracies, cell_of, seed_of, correct)
        if part.influence is None:
            found.append(np.nan)
            continue
        of_seeds = part.seeds * float(part.influence.var())
        found.append(of_seeds + part.images_own**2 * part.of_images)
    return np.array(found)


def _arrays(
    contrasts: ArrayLike, accuracy: ArrayLike, cells: ArrayLike, seeds: ArrayLike
) -> tuple[Floats, Floats, NDArray[Any], NDArray[Any]]:
    """Weights, accuracies, and the number of each run's cell and seed."""
    weights = np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
    _, cell_of = np.unique(np.asarray(cells), return_inverse=True)
    _, seed_of = np.unique(np.asarray(seeds), return_inverse=True)
    return weights, np.asarray(accuracy, dtype=np.float64), cell_of, seed_of


def two_sided(draws: Floats) -> float:
    """How likely a value as far from 0 as this is where there is nothing, judged by the draws around the value."""
    n = len(draws)
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (n + 1))


@dataclass(frozen=True)
class _Parts:
    """One contrast taken apart: ``influence`` (seeds,) is what each seed adds to it beyond its mean.

    ``images_own`` is the share of the spread over images (as a standard deviation) that is not in that over seeds,
    ``of_images`` the variance over images. ``over_cells`` is what the contrast makes of a cell effect of unit size.
    """

    seeds: int
    runs: int
    influence: Floats | None
    over_cells: float
    images_own: float = 1.0
    of_images: float = 0.0

    @classmethod
    def of(
        cls, weights: Floats, accuracy: Floats, cells: NDArray[Any], seeds: NDArray[Any], correct: NDArray[Any] | None
    ) -> _Parts:
        used = np.flatnonzero(weights)
        over_cells = float(np.sqrt((np.bincount(cells[used], weights[used]) ** 2).sum()))
        labels, place = np.unique(seeds[used], return_inverse=True)
        influence = np.zeros(len(labels))
        residuals = None if correct is None else np.zeros((len(labels), correct.shape[1]))
        for cell in np.unique(cells[used]):
            inside = np.flatnonzero(cells[used] == cell)
            runs, n = used[inside], len(inside)
            if n < 2:
                return cls(len(labels), len(used), None, over_cells)
            share = weights[runs] * np.sqrt(n / (n - 1))
            np.add.at(influence, place[inside], share * (accuracy[runs] - accuracy[runs].mean()))
            if residuals is not None and correct is not None:
                right = correct[runs].astype(np.float64)
                np.add.at(residuals, place[inside], share[:, None] * (right - right.mean(0)))
        if residuals is None or correct is None:
            return cls(len(labels), len(used), influence, over_cells)
        n_images = correct.shape[1]
        of_images = float((weights[used] @ correct[used]).var(ddof=1) / n_images)
        residual = residuals - residuals.mean(1, keepdims=True)
        of_single = float((residual**2).sum() / (n_images * (n_images - 1)))
        own = max(0.0, 1 - of_single / of_images) if of_images else 0.0
        return cls(len(labels), len(used), influence, over_cells, float(np.sqrt(own)), of_images)


def _cell_deviations(between: CellEffect, draws: int) -> Floats:
    """What an effect of the cells adds to a contrast of unit size over them (draws,): Student's t, scaled."""
    generator = np.random.default_rng(derive(0, "report", "cells", between.freedom))
    spread = np.sqrt(between.variance * between.freedom / generator.chisquare(between.freedom, size=draws))
    return np.asarray(spread * generator.normal(size=draws))


def _seed_draws(n: int, draws: int) -> tuple[NDArray[np.int64], Floats]:
    """How often each of n seeds is drawn (draws, n), and the factor that makes their deviations Student's (draws,)."""
    generator = np.random.default_rng(derive(0, "report", "seeds", n))
    counts = generator.multinomial(n, np.full(n, 1 / n), size=draws)
    return counts, np.sqrt((n - 1) / generator.chisquare(n - 1, size=draws))


def _image_deviations(weights: Floats, correct: NDArray[np.bool_], draws: int) -> Floats:
    """What resampling the test images changes in each contrast (K, draws)."""
    n = correct.shape[1]
    blocks = range(0, n, 1000)  # products with booleans make floats of them
    per_image = np.concatenate([weights @ correct[:, i : i + 1000] for i in blocks], 1).astype(np.float32)  # (K, N)
    per_image -= per_image.mean(1, keepdims=True)
    generator = np.random.default_rng(derive(0, "report", "images", n))
    deviations = np.empty((len(weights), draws))
    for start in range(0, draws, _BLOCK):
        block = min(_BLOCK, draws - start)
        drawn = generator.integers(0, n, size=(block, n), dtype=np.int32)
        drawn += (np.arange(block, dtype=np.int32) * n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=block * n).reshape(block, n).astype(np.float32)
        deviations[:, start : start + block] = (per_image @ counts.T) / n
    return deviations


def _percentiles(draws: Floats, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), _DIGITS), round(float(high), _DIGITS)
