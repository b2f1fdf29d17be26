"""Linear maps whose effective matrix is sparse. They know nothing of configs, Hydra or runs.

Each has ``in_width``, ``out_width``, ``connections`` (nonzeros of the effective matrix), ``weights`` (trainable
numbers behind them, biases apart), ``initialize(generator)`` and ``to_dense()``, the (out_width, in_width) matrix
that every fast path is tested against.
"""

from mixersweep.layers.base import SparseMap
from mixersweep.layers.convolution import SparseConv
from mixersweep.layers.dense import Dense
from mixersweep.layers.kronecker import PermutedKronecker, table
from mixersweep.layers.masks import Plane, draw_mask
from mixersweep.layers.norm import ColumnNorm, RowNorm
from mixersweep.layers.permutation import (
    Commutation,
    Identity,
    IndexPermutation,
    Permutation,
    RandomPermutation,
    turned,
)
from mixersweep.layers.readout import GroupReadout
from mixersweep.layers.sparse import SparseWeights

__all__ = [
    "ColumnNorm",
    "Commutation",
    "Dense",
    "GroupReadout",
    "Identity",
    "IndexPermutation",
    "Permutation",
    "PermutedKronecker",
    "Plane",
    "RandomPermutation",
    "RowNorm",
    "SparseConv",
    "SparseMap",
    "SparseWeights",
    "draw_mask",
    "table",
    "turned",
]
