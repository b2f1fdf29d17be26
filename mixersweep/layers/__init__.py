"""Linear maps whose effective matrix is sparse. They know nothing of configs, Hydra or runs.

Each has ``in_width``, ``out_width``, ``connections`` (nonzeros of the effective matrix), ``weights`` (trainable
weights behind them, without biases), ``initialize(generator)`` and ``to_dense()``, the (out_width, in_width) matrix
that every fast path is tested against.

Features have one of three layouts. Suffixes of names spell the axes: m or n features, b examples, r runs or rows, c
columns.

============== ======================= ============================================================================
layout         shape                   where
============== ======================= ============================================================================
batch first    (B, features)           PyTorch's own, and that of every layer called without ``features_first``
features first (features, B)           between stem and head, for products with sparse matrices: ``x_mb``
rbc            (rows, B, columns)      between stem and head, for Mixers: feature f of an example is the entry
                                       (f // columns, f % columns) of its (rows, columns) matrix: ``x_rbc``
============== ======================= ============================================================================

Tensors of the R runs of a pack have a leading axis R before each of these: ``x_rmb`` is (R, features, B).
"""

from mixersweep.layers.base import SharedParameter, SharesParameters, SparseMap
from mixersweep.layers.convolution import SparseConv
from mixersweep.layers.dense import Dense
from mixersweep.layers.factors import (
    BesideDiagonal,
    BlockFactor,
    Factors,
    LowRank,
    block_diagonal,
    block_tensor_train,
    butterfly,
    linear_maps,
)
from mixersweep.layers.kronecker import PermutedKronecker, with_rows
from mixersweep.layers.masks import Plane, draw_mask
from mixersweep.layers.norm import ColumnNorm, RowNorm
from mixersweep.layers.permutation import (
    Commutation,
    Identity,
    IndexPermutation,
    Permutation,
    RandomPermutation,
    transposed,
)
from mixersweep.layers.readout import GroupReadout
from mixersweep.layers.sparse import HashedWeights, SparseWeights

__all__ = [
    "BesideDiagonal",
    "BlockFactor",
    "ColumnNorm",
    "Commutation",
    "Dense",
    "Factors",
    "GroupReadout",
    "HashedWeights",
    "Identity",
    "IndexPermutation",
    "LowRank",
    "Permutation",
    "PermutedKronecker",
    "Plane",
    "RandomPermutation",
    "RowNorm",
    "SharedParameter",
    "SharesParameters",
    "SparseConv",
    "SparseMap",
    "SparseWeights",
    "block_diagonal",
    "block_tensor_train",
    "butterfly",
    "draw_mask",
    "linear_maps",
    "transposed",
    "with_rows",
]
