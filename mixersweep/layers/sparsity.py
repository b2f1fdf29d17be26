"""Measures of how sparse the values of weights are, whatever zeros their structure has.

Hurley & Rickard 2009 compare such measures; Hoyer 2004 is the source of ``hoyer``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.layers.base import SparseMap
from mixersweep.layers.effective import DENSE_SIDE, singular_values
from mixersweep.layers.kronecker import PermutedKronecker
from mixersweep.layers.sparse import SparseWeights

Floats = NDArray[np.float64]

THRESHOLDS = (0.01, 0.1, 0.5)
"""Fractions of the root mean square, below which a weight counts as small."""


def measures(layer: SparseMap) -> dict[str, Any]:
    """Measure the sparsity of one layer's weights; the keys are columns of ``analyze sparsity``.

    ``nuclear_norm`` is None where a sparse map is too large for all its singular values.
    """
    values = layer.values() if isinstance(layer, SparseWeights) else layer.weight
    weights: Floats = values.detach().double().cpu().numpy().ravel()
    copies = layer.connections / max(1, weights.size)  # how often each weight occurs in the effective matrix
    norm, total = float(np.linalg.norm(weights)) * copies**0.5, float(np.abs(weights).sum()) * copies
    entries = layer.in_width * layer.out_width
    root = float(np.sqrt(np.mean(weights**2))) if weights.size else 0.0
    side = min(layer.in_width, layer.out_width)
    nuclear = None
    if isinstance(layer, PermutedKronecker) or side <= DENSE_SIDE:
        nuclear = float(singular_values(layer).sum())
    return {
        "l1_over_l2": l1_over_l2(weights),
        "hoyer": hoyer(weights),
        "hoyer_matrix": (entries**0.5 - total / norm) / (entries**0.5 - 1) if norm and entries > 1 else None,
        **{f"below_{part:g}": float(np.mean(np.abs(weights) < part * root)) for part in THRESHOLDS},
        "nuclear_norm": nuclear,
        "nuclear_over_frobenius": nuclear / (norm * side**0.5) if nuclear is not None and norm else None,
        "root_mean_square": root,
    }


def hoyer(weights: Floats) -> float:
    """Hoyer's sparsity index, (√n - |w|₁/|w|₂) / (√n - 1).

    It is 0 where all weights have the same size, 1 where only one is not zero, and about 0.2 for normal weights.
    """
    return sparsity_indices(weights.size, float(np.abs(weights).sum()), float(np.linalg.norm(weights)))[0]


def l1_over_l2(weights: Floats) -> float:
    """The norm ratio |w|₁ / (√n·|w|₂): 1 where all weights have the same size, √(2/π) = 0.80 for normal weights."""
    return sparsity_indices(weights.size, float(np.abs(weights).sum()), float(np.linalg.norm(weights)))[1]


def sparsity_indices(n: int, l1: float, l2: float) -> tuple[float, float]:
    """Return (``hoyer``, ``l1_over_l2``) of n weights with these norms; NaN where there are none, or only zeros."""
    ratio = l1 / (l2 * math.sqrt(n)) if l2 else float("nan")
    return (math.sqrt(n) * (1 - ratio) / (math.sqrt(n) - 1) if n > 1 else float("nan")), ratio
