"""Bootstrap intervals for weighted sums over runs, resampling seeds and test images together.

Every number that a report compares is a *contrast*: a weighted sum of the accuracies of runs, such as a mean over
seeds, a difference of two models pooled over widths, or a slope on log width. The runs form a grid of seeds by test
images, and both are samples: other seeds and other images would have given other numbers.

One draw resamples the seeds (the same for every width and model, since runs of one seed share their split and order)
and the test images (the same for all runs, since there is one test set). Two corrections give the percentiles of the
draws their nominal coverage even for few seeds:

- Percentiles of n resampled seeds are too narrow: for 3 seeds, 95% intervals cover 76%. The deviation due to seeds is
  therefore divided by the square root of χ²/(n-1), drawn anew each time, after the usual factor √(n/(n-1)): for
  normally distributed seeds that is Student's t, and for many seeds the plain bootstrap.
- The randomness of single predictions is part of the spread over seeds *and* of that over images, so their sum counts
  it twice (Owen 2007). Estimated from the residuals of the two-way layout, it is removed from the spread over images.

What is fixed for a cell (a model at one width) whatever the seed, such as a learning rate that two seeds chose or a
size rounded to an integer, is not part of the spread over seeds. Where its variance could be estimated
(``cell_effects``), a draw adds a normal effect to each cell, with a variance drawn to be as uncertain as the estimate.

The three deviations are added, each with its own uncertainty. That is conservative: in simulated sweeps of known truth
95% intervals cover 96% to 99%. A single Student's t for the sum, with Satterthwaite's degrees of freedom, would detect
effects that are 9% to 24% smaller and cover 94% to 98%, but its tail, which Holm's correction uses, is too light: of
150 simulated reports without any effect, of 3 and of 5 seeds, with and without cell effects, 5% to 9% then claimed one,
against 0% to 2% with the sum.

Everything is drawn from a fixed seed: the same runs give the same numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixersweep.seeds import derive

DRAWS = 10_000
LEVEL = 0.95
_BLOCK = 256
_IMAGES_AT_ONCE = 1000
_RESIDUALS_AT_ONCE = 250
_HELD = 2**24
"""The most numbers of contrasts by draws, or by images, that are held at a time, to limit memory."""

_DIGITS = 12
"""The decimals that results are rounded to, so that sums that are 0 in exact arithmetic are 0."""

DRAWS_A_CLAIM = 400
"""The fewest draws per claim of a report: the smallest p that they allow stays below 5% after Holm's correction."""

POWER = 0.8
"""The probability that an effect of the size ``Estimate.detectable`` is shown."""

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class CellEffect:
    """The random effect of a cell, shared by all its seeds: its estimated variance and the degrees of freedom."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Estimate:
    """A contrast with two 95% intervals: over seeds for these test images, and over seeds and test images.

    ``seeds``, ``runs`` and ``images`` count what it was computed from (``images`` is None where predictions are
    missing). Intervals are None for one seed, that over images also without predictions. ``p`` is the two-sided p-value
    for the null hypothesis that the contrast is zero, from the same draws as ``interval``; the number of draws lets it
    be no smaller than ``smallest_p``. ``detectable`` is the smallest effect that would be shown four times in five,
    with Bonferroni's correction for the claims of the report (Holm's is never stricter).
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
        """The interval over seeds and test images, or over seeds where predictions are missing."""
        return self.over_seeds_and_images or self.over_seeds

    @property
    def at_floor(self) -> bool:
        """Whether p is the smallest that the number of draws allows, so that it is only an upper bound."""
        return self.p is not None and self.smallest_p is not None and self.p <= self.smallest_p

    def scaled(self, factor: float) -> Estimate:
        """The estimate of ``factor`` times the contrast; a negative factor reverses its direction."""

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
    """The number of draws for a report of so many claims."""
    return max(DRAWS, DRAWS_A_CLAIM * claims)


def estimate(
    contrasts: ArrayLike,
    accuracy: ArrayLike,
    cells: ArrayLike,
    seeds: ArrayLike,
    correct: NDArray[np.bool_] | None = None,
    *,
    cell_effects: Sequence[CellEffect | None] | None = None,
    claims: int = 1,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> list[Estimate]:
    """Estimate K contrasts of R runs, with intervals and p-values.

    ``contrasts`` (K, R) are the weights and ``accuracy`` (R,) the test accuracies. ``cells`` and ``seeds`` (R,) label
    the runs; those of a cell differ only in their seed. ``correct`` (R, N) says which test images each run classified
    correctly. ``cell_effects`` has the random effect of the cells for each contrast, None for one that is about these
    cells only. ``claims`` is the number of claims that the report tests. A contrast that uses a cell of one run has no
    intervals.
    """
    weights, accuracies, cell_of, seed_of = _arrays(contrasts, accuracy, cells, seeds)
    values = np.round(weights @ accuracies, _DIGITS)
    parts = _decompositions(weights, accuracies, cell_of, seed_of, correct)
    spread = any(part.influence is not None for part in parts)
    by_images = itertools.repeat(None) if correct is None or not spread else _by_images(weights, correct, draws)
    effects = [None] * len(weights) if cell_effects is None else cell_effects
    by_cells = {effect: _cell_deviations(effect, draws) for effect in effects if effect is not None}
    by_seeds: dict[int, tuple[Floats, Floats]] = {}
    found = []
    for k, (part, over_images) in enumerate(zip(parts, by_images, strict=False)):
        images = None if correct is None else correct.shape[1]
        if part.influence is None:
            found.append(Estimate(float(values[k]), part.seeds, part.runs, images))
            continue
        if part.seeds not in by_seeds:
            by_seeds[part.seeds] = _seed_draws(part.seeds, draws)
        more, scale = by_seeds[part.seeds]
        deviation = (more @ part.influence) * scale
        if (effect := effects[k]) is not None:
            deviation = deviation + part.over_cells * by_cells[effect]
        over_seeds = _percentiles(values[k] + deviation, level)
        both = None
        if over_images is not None:
            deviation = deviation + part.images_own * over_images.astype(np.float64)
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
    """The variances (K,) of K contrasts due to seeds and test images; NaN where a cell has one run.

    The arguments are those of ``estimate``.
    """
    weights, accuracies, cell_of, seed_of = _arrays(contrasts, accuracy, cells, seeds)
    found = []
    for part in _decompositions(weights, accuracies, cell_of, seed_of, correct):
        if part.influence is None:
            found.append(np.nan)
            continue
        of_seeds = part.seeds * float(part.influence.var())
        found.append(of_seeds + part.images_own**2 * part.of_images)
    return np.array(found)


def _arrays(
    contrasts: ArrayLike, accuracy: ArrayLike, cells: ArrayLike, seeds: ArrayLike
) -> tuple[Floats, Floats, NDArray[Any], NDArray[Any]]:
    """The weights (K, R) and accuracies (R,), and the cells and seeds (R,) as integers."""
    weights = np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
    _, cell_of = np.unique(np.asarray(cells), return_inverse=True)
    _, seed_of = np.unique(np.asarray(seeds), return_inverse=True)
    return weights, np.asarray(accuracy, dtype=np.float64), cell_of, seed_of


def two_sided(draws: Floats) -> float:
    """Two-sided p-value for the null hypothesis that the value is zero, from draws around its estimate."""
    n = len(draws)
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (n + 1))


@dataclass(frozen=True)
class _Decomposition:
    """The parts of a contrast's variation: over seeds, over test images and over cells.

    ``influence`` (seeds,) is each seed's contribution to the contrast, minus its mean; None where a cell has one run.
    ``of_images`` is the variance over images, and ``images_own`` the factor on the deviation over images that removes
    what the spread over seeds already contains. ``over_cells`` is the standard deviation of the contrast under a cell
    effect of unit variance.
    """

    seeds: int
    runs: int
    influence: Floats | None
    over_cells: float
    images_own: float = 1.0
    of_images: float = 0.0

    @classmethod
    def of(cls, weights: Floats, accuracy: Floats, cells: NDArray[Any], seeds: NDArray[Any]) -> _Decomposition:
        """The parts that need no predictions."""
        used = np.flatnonzero(weights)
        over_cells = float(np.sqrt((np.bincount(cells[used], weights[used]) ** 2).sum()))
        labels, seed_of = np.unique(seeds[used], return_inverse=True)
        influence = np.zeros(len(labels))
        for cell in np.unique(cells[used]):
            inside = np.flatnonzero(cells[used] == cell)
            runs, n = used[inside], len(inside)
            if n < 2:
                return cls(len(labels), len(used), None, over_cells)
            scaled = weights[runs] * np.sqrt(n / (n - 1))
            np.add.at(influence, seed_of[inside], scaled * (accuracy[runs] - accuracy[runs].mean()))
        return cls(len(labels), len(used), influence, over_cells)

    def with_images(self, of_images: float, of_single: float) -> _Decomposition:
        """Add the variance over images, of which ``of_single`` is the share of single predictions."""
        own = max(0.0, 1 - of_single / of_images) if of_images else 0.0
        return dataclasses.replace(self, images_own=float(np.sqrt(own)), of_images=of_images)


def _decompositions(
    weights: Floats, accuracy: Floats, cells: NDArray[Any], seeds: NDArray[Any], correct: NDArray[np.bool_] | None
) -> list[_Decomposition]:
    """The parts of the variation of each contrast."""
    parts = [_Decomposition.of(row, accuracy, cells, seeds) for row in weights]
    if correct is None:
        return parts
    n = correct.shape[1]
    known = [k for k, part in enumerate(parts) if part.influence is not None]
    at_once = max(1, _HELD // (2 * n * max((parts[k].seeds for k in known), default=1)))
    for start in range(0, len(known), at_once):
        group = known[start : start + at_once]
        for k, squares in zip(group, _residual_squares(weights[group], cells, seeds, correct), strict=True):
            used = np.flatnonzero(weights[k])
            of_images = float(_per_image(weights[k, used], correct, used).var(ddof=1) / n)
            parts[k] = parts[k].with_images(of_images, squares / (n * (n - 1)))
    return parts


def _residual_squares(
    weights: Floats, cells: NDArray[Any], seeds: NDArray[Any], correct: NDArray[np.bool_]
) -> list[float]:
    """For each contrast the sum of squares of the residuals of its two-way layout of seeds by images."""
    own_seeds = [np.unique(seeds[row != 0]) for row in weights]
    uses = [use for cell in np.unique(cells) for use in _uses(np.flatnonzero(cells == cell), weights, seeds, own_seeds)]
    residuals = [np.zeros((len(own), correct.shape[1])) for own in own_seeds]
    for images in _blocks(correct.shape[1], _RESIDUALS_AT_ONCE):
        found = [all_images[:, images].copy() for all_images in residuals]
        for runs, contrasts in uses:
            right = correct[runs, images].astype(np.float64)
            right -= right.mean(0)
            for k, factors, places in contrasts:
                if places is None:
                    found[k] += right * factors
                    continue
                for place, row in zip(places, right * factors, strict=True):
                    found[k][place] += row
        for all_images, part in zip(residuals, found, strict=True):
            all_images[:, images] = part
    for all_images in residuals:
        all_images -= all_images.mean(1, keepdims=True)
    return [float(np.square(all_images, out=all_images).sum()) for all_images in residuals]


Use = tuple[NDArray[np.int64], list[tuple[int, Floats, NDArray[np.int64] | None]]]


def _uses(
    runs: NDArray[np.int64], weights: Floats, seeds: NDArray[Any], own_seeds: Sequence[NDArray[Any]]
) -> list[Use]:
    """The runs of a cell that contrasts use, each with the contrasts (k), their factors, and the places of the seeds.

    The places are None where they are all that the contrast has, in order.
    """
    runs = runs[np.argsort(seeds[runs], kind="stable")]
    alike: dict[bytes, Use] = {}
    for k, used in enumerate(weights[:, runs] != 0):
        own = runs[used]
        if not len(own):
            continue
        places = np.searchsorted(own_seeds[k], seeds[own])
        whole = np.array_equal(places, np.arange(len(own_seeds[k])))
        factors = weights[k, own, None] * np.sqrt(len(own) / (len(own) - 1))
        alike.setdefault(used.tobytes(), (own, []))[1].append((k, factors, None if whole else places))
    return list(alike.values())


def _per_image(weights: Floats, correct: NDArray[np.bool_], runs: NDArray[np.int64] | slice) -> Floats:
    """The weighted sums (..., N) of what runs got right, in blocks, since a product converts booleans to floats."""
    parts = [weights @ correct[runs, images] for images in _blocks(correct.shape[1], _IMAGES_AT_ONCE)]
    return np.concatenate(parts, -1)


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _cell_deviations(effect: CellEffect, draws: int) -> Floats:
    """Draws (draws,) of the deviation that cell effects cause in a contrast with ``over_cells`` of 1: a scaled t."""
    generator = np.random.default_rng(derive(0, "report", "cells", effect.freedom))
    spread = np.sqrt(effect.variance * effect.freedom / generator.chisquare(effect.freedom, size=draws))
    return np.asarray(spread * generator.normal(size=draws))


def _seed_draws(n: int, draws: int) -> tuple[Floats, Floats]:
    """How much more often than once each of n seeds is drawn (draws, n), and the factors that make it Student's t."""
    generator = np.random.default_rng(derive(0, "report", "seeds", n))
    counts = generator.multinomial(n, np.full(n, 1 / n), size=draws)
    return (counts - 1).astype(np.float64), np.sqrt((n - 1) / generator.chisquare(n - 1, size=draws))


def _by_images(weights: Floats, correct: NDArray[np.bool_], draws: int) -> Iterator[NDArray[np.float32]]:
    """For each contrast its ``_image_deviations``, computed for as many contrasts at a time as memory allows."""
    at_once = max(1, _HELD // draws)
    for start in range(0, len(weights), at_once):
        yield from _image_deviations(weights[start : start + at_once], correct, draws)


def _image_deviations(weights: Floats, correct: NDArray[np.bool_], draws: int) -> NDArray[np.float32]:
    """The deviations (K, draws) that resampling the test images causes in each contrast."""
    n = correct.shape[1]
    per_image = _per_image(weights, correct, slice(None)).astype(np.float32)  # (K, N)
    per_image -= per_image.mean(1, keepdims=True)
    generator = np.random.default_rng(derive(0, "report", "images", n))
    deviations = np.empty((len(weights), draws), dtype=np.float32)
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
