"""95% intervals over seeds, and the parts of bootstrap intervals over seeds and batches of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Interval = tuple[float, float]
Floats = NDArray[np.float64]


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Student's 95% interval of the mean of values, one per seed; None for fewer than two."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def percentiles(draws: Floats) -> Interval:
    """The interval that contains the middle 95% of draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def student_scale(generator: np.random.Generator, n: int, draws: int) -> Floats:
    """Factors (draws,) that give deviations of resampled means of n values the width of Student's t."""
    factors: Floats = np.sqrt(n / generator.chisquare(n - 1, size=draws))
    return factors
