"""The sign-flip test of paired differences, and Holm's correction for several tests (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mixersweep.seeds import derive

_EXACT = 16
_FLIPS = 100_000


def sign_flip_p(differences: Sequence[float]) -> tuple[float, float]:
    """The two-sided p-value of a mean difference under random flips of signs, and the smallest that is possible.

    Exact for up to 16 differences; for more, estimated from 100,000 seeded flips.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    observed = abs(d.sum()) * (1 - 1e-9)
    if n <= _EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ d) >= observed).mean()), min(1.0, 2.0 ** (1 - n))
    return float((1 + (np.abs(_flips(n) @ d) >= observed).sum()) / (1 + _FLIPS)), 1 / (1 + _FLIPS)


@lru_cache(maxsize=1)
def _flips(n: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(derive(0, "report", "signs", n))
    return (2 * generator.integers(0, 2, size=(_FLIPS, n), dtype=np.int8) - 1).astype(np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values by Holm's step-down method; the order is kept."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return [float(p) for p in corrected]
