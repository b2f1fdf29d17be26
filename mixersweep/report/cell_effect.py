"""The random effect of a cell (a model at one width): what its seeds have in common and other cells do not.

Seeds resample weights, masks, the split and the order of images. They do not resample a learning rate that two other
seeds chose, nor the sizes that integers allowed. What these do to a cell looks like a trend or a difference, and no
interval over seeds takes it in. It shows in how far the means of the widths lie from a smooth curve through them:
further than seeds and test images explain. One variance is estimated for all cells of a comparison together, as a
moment of the residuals from a parabola in log width (a straight line through three widths), less what seeds and
images let the same residuals vary.

With few residuals that moment is a poor guess. One degree of freedom is taken off, and the draws take the estimate as
uncertain as it is (``bootstrap``): in simulated sweeps without any effect, with cell effects up to the size of the
spread over seeds, claims are then false in no more than 5% of reports; without the one taken off in up to 8%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.report.bootstrap import CellEffect, Floats, variances

FEWEST = 2
"""Residual degrees of freedom below which nothing is estimated."""


def residual_contrasts(widths: Sequence[float]) -> Floats:
    """Orthonormal contrasts (F, K) of the means at K widths that are 0 for every smooth curve through them."""
    x = np.log2(np.asarray(widths, dtype=np.float64))
    different = len(np.unique(x))
    degree = min(2, different - 2)
    if degree < 1:
        return np.zeros((0, len(x)))
    basis, _ = np.linalg.qr(np.vander((x - x.mean()) / np.ptp(x), degree + 1), mode="complete")
    return np.asarray(basis[:, degree + 1 :].T)


def cell_effect(
    contrasts: Floats,
    accuracy: Floats,
    cells: NDArray[Any],
    seeds: Sequence[str],
    correct: NDArray[np.bool_] | None,
) -> CellEffect | None:
    """The effect behind residual contrasts (F, R) over runs; None where there are too few to estimate it."""
    if len(contrasts) < FEWEST:
        return None
    explained = variances(contrasts, accuracy, cells, seeds, correct)
    known = np.isfinite(explained)
    freedom = int(known.sum())
    if freedom < FEWEST:
        return None
    squares = float(((contrasts[known] @ accuracy) ** 2).sum())
    return CellEffect(max(0.0, squares / (freedom - 1) - float(explained[known].mean())), freedom)
