"""The random effect of a cell (a model at one width): a deviation that its seeds share and other cells do not.

Seeds resample weights, masks, the split and the order of images. They do not resample a learning rate that two other
seeds chose, nor sizes rounded to integers. The effect of these on a cell looks like a trend or a difference, and no
interval over seeds accounts for it. It shows in the distance of the widths' means from a smooth curve through them,
where that exceeds what seeds and test images explain. One variance is estimated for all cells of a comparison: the mean
square of the residuals from a parabola in log width (for three widths, from a straight line), minus the variance of the
same residuals due to seeds and images.

With few residuals that estimate is poor. So one degree of freedom is subtracted, and the draws account for the
uncertainty of the variance (``bootstrap``): in simulated sweeps without any effect, and with cell effects up to the
size of the spread over seeds, at most 5% of reports then make a false claim; without the subtraction, up to 8% do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.report.bootstrap import CellEffect, Floats, variances

FEWEST = 2
"""The residual degrees of freedom below which nothing is estimated."""


def residual_contrasts(widths: Sequence[float]) -> Floats:
    """Orthonormal contrasts (F, K) of the means at K widths that vanish on every parabola in log width.

    For three widths they vanish on straight lines; for fewer there are none.
    """
    x = np.log2(np.asarray(widths, dtype=np.float64))
    different = len(np.unique(x))
    degree = min(2, different - 2)
    if degree < 1:
        return np.zeros((0, len(x)))
    basis, _ = np.linalg.qr(np.vander((x - x.mean()) / np.ptp(x), degree + 1), mode="complete")
    return np.asarray(basis[:, degree + 1 :].T)


def estimate_cell_effect(
    contrasts: Floats,
    accuracy: Floats,
    cells: NDArray[Any],
    seeds: Sequence[str],
    correct: NDArray[np.bool_] | None,
) -> CellEffect | None:
    """Estimate the variance of the cell effect from residual contrasts (F, R) over R runs; None where F is too small.

    ``accuracy`` (R,), ``cells``, ``seeds`` and ``correct`` (R, N) are as for ``bootstrap.estimate``.
    """
    if len(contrasts) < FEWEST:
        return None
    explained = variances(contrasts, accuracy, cells, seeds, correct)
    known = np.isfinite(explained)
    freedom = int(known.sum())
    if freedom < FEWEST:
        return None
    squares = float(((contrasts[known] @ accuracy) ** 2).sum())
    return CellEffect(max(0.0, squares / (freedom - 1) - float(explained[known].mean())), freedom)
