"""Linear maps that are products of sparse factors: the effective matrix may be full, its factors are sparse.

Each factor is a ``SparseMap`` of its own, initialised by its own fan-in, so that the product of fresh factors keeps the
variance of features. Connections and weights of a product are those of all its factors together. Only the last factor
has a bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from mixersweep.layers import blocks
from mixersweep.layers.base import SparseMap
from mixersweep.layers.dense import Dense
from mixersweep.layers.kronecker import PermutedKronecker, batched_products
from mixersweep.layers.pack import for_all_runs, is_packed
from mixersweep.layers.permutation import Commutation, Identity, Permutation
from mixersweep.layers.product import column, linear, product


class Factors(nn.Sequential):
    """The map y = F_k ... F_2 F_1 x + b, with the factor that is applied first in front."""

    takes_rbc = False

    @property
    def factors(self) -> list[SparseMap]:
        """The factors, in the order in which they are applied."""
        return [cast(SparseMap, factor) for factor in self]

    @property
    def in_width(self) -> int:
        """The number of inputs."""
        return self.factors[0].in_width

    @property
    def out_width(self) -> int:
        """The number of outputs."""
        return self.factors[-1].out_width

    @property
    def connections(self) -> int:
        """The nonzeros of all factors together: a multiply-add each, where the product itself may be dense."""
        return sum(factor.connections for factor in self.factors)

    @property
    def weights(self) -> int:
        """The trainable weights of all factors together."""
        return sum(factor.weights for factor in self.factors)

    def to_dense(self) -> Tensor:
        """Return the product of the factors' matrices (out_width, in_width)."""
        return reduce(lambda right, left: left @ right, (factor.to_dense() for factor in self.factors))

    def dense_bias(self) -> Tensor:
        """Return the bias of the last factor (out_width,), zeros where there is none."""
        return self.factors[-1].dense_bias()

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Map (B, in_width) to (B, out_width), or with ``features_first`` (in_width, B) to (out_width, B)."""
        if not features_first:
            return self._map(x.t().contiguous()).t()
        return self._map(x)

    def _map(self, x_mb: Tensor) -> Tensor:
        for factor in self.factors:
            x_mb = factor(x_mb, features_first=True)
        return x_mb


class BlockFactor(PermutedKronecker):
    """The map B P of untied blocks on the diagonal and a permutation P: a factor of a product, features first.

    By default P gathers the features of an (in_size, blocks) matrix by columns, so that block n reads column n; the
    blocks then read the features where they lie, and nothing is copied. The result is (blocks, out_size), row by row:
    factors in succession go through the axes of a table of features one after the other.
    """

    takes_rbc = False

    def __init__(
        self, blocks: int, in_size: int, out_size: int, *, bias: bool = False, before: Permutation | None = None
    ) -> None:
        columns = before or Commutation(in_size, blocks)
        super().__init__(blocks, in_size, out_size, tied=False, bias=bias, before=columns)

    def to_dense(self) -> Tensor:
        """Return B P (out_width, in_width): column j of B stands where P takes feature j from."""
        matrix: Tensor = torch.block_diag(*self.weight)
        return matrix[:, self.before.indices().argsort().to(matrix.device)]

    def _map_features_first(self, x: Tensor) -> Tensor:
        """Map (in_width, B) to (out_width, B)."""
        if isinstance(self.before, Commutation):
            x_nib = x.reshape(self.in_size, self.blocks, -1).transpose(0, 1)
        else:
            x_nib = self.before(x, features_first=True).reshape(self.blocks, self.in_size, -1)
        return batched_products(self.weight, x_nib, column(self.bias)).reshape(self.out_width, -1)


class BlockFactors(Factors):
    """A product of ``BlockFactor``, all but the first of which gather features by columns."""

    def __init__(self, *factors: BlockFactor) -> None:
        super().__init__(*factors)
        self.side = max(max(factor.in_size, factor.out_size) for factor in factors)

    def _map(self, x_mb: Tensor) -> Tensor:
        first, last = cast(BlockFactor, self[0]), cast(BlockFactor, self[-1])
        if not blocks.is_for(x_mb, first.weight, self.side):
            return super()._map(x_mb)
        weights = [factor.weight for factor in self.factors]
        by_columns = isinstance(first.before, Commutation)
        if not by_columns:
            x_mb = first.before(x_mb, features_first=True)
        bias = None if last.bias is None else last.bias.flatten()
        if is_packed():
            return for_all_runs(blocks.products_of_runs, x_mb, bias, by_columns, *weights)
        return blocks.product(x_mb, weights, bias, by_columns=by_columns)


def block_diagonal(width: int, size: int, *, bias: bool = True, before: Permutation | None = None) -> Factors:
    """Return blocks of ``size`` x ``size`` on the diagonal, after a permutation, by default none."""
    return BlockFactors(BlockFactor(width // size, size, size, bias=bias, before=before or Identity(width)))


def block_tensor_train(rows: int, columns: int, rank: int, *, bias: bool = True) -> Factors:
    """Return the two factors of a block tensor train on features that are a (rows, columns) matrix X, row by row.

    z[c, k, s] = sum over t of R[c, k, s, t] X[t, c] for each of the ranks k, and y[s, d] = sum over c and k of
    L[s, d, c, k] z[c, k, s] (Qiu et al. 2024, arXiv 2406.06248). Of rank 1 it is a Monarch matrix.
    """
    right = BlockFactor(columns, rows, rank * rows)
    return BlockFactors(right, BlockFactor(rows, columns * rank, columns, bias=bias))


def butterfly(radices: Sequence[int], *, bias: bool = True) -> Factors:
    """Return a factor for each axis of a table of features, row by row, whose sizes are ``radices``.

    The factor of an axis of size b has a b x b block for each place on the other axes. Radices of 2 are the butterfly
    of a fast Fourier transform (Dao et al. 2019, arXiv 1903.05895), with the bits in another order.
    """
    width, last = math.prod(radices), len(radices) - 1
    return BlockFactors(*(BlockFactor(width // b, b, b, bias=bias and axis == last) for axis, b in enumerate(radices)))


class BesideDiagonal(SparseMap):
    """The map [U, diag(d)] of (rank + width) features to width: the second factor of a ``LowRank`` map.

    Row i of the weight (width, rank + 1) is that of U, followed by d_i.
    """

    def __init__(self, width: int, rank: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_width, self.out_width, self.rank = rank + width, width, rank
        self.weight = nn.Parameter(torch.zeros(width, rank + 1))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    @property
    def connections(self) -> int:
        """The entries of U and of the diagonal."""
        return self.weight.numel()

    def to_dense(self) -> Tensor:
        """Return [U, diag(d)], (width, rank + width)."""
        return torch.cat([self.weight[:, :-1], torch.diag(self.weight[:, -1])], 1)

    def dense_bias(self) -> Tensor:
        """Return the bias (width,), zeros where there is none."""
        return self.weight.new_zeros(self.out_width) if self.bias is None else self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Map (B, rank + width) to (B, width), or with ``features_first`` (rank + width, B) to (width, B)."""
        if features_first:
            return self.of_parts(x[: self.rank], x[self.rank :])
        return linear(x[:, : self.rank], self.weight[:, :-1], self.bias) + x[:, self.rank :] * self.weight[:, -1]

    def of_parts(self, z_rb: Tensor, x_mb: Tensor) -> Tensor:
        """Return U z + d ∘ x + b, (width, B), of the two parts (rank, B) and (width, B) of its input."""
        return torch.addcmul(product(self.weight[:, :-1], z_rb, column(self.bias)), x_mb, self.weight[:, -1:])


class LowRank(Factors):
    """The map y = (U Vᵀ + diag(d)) x + b of ``width`` features, with U and V of width x rank.

    It is the product of [U, diag(d)] and Vᵀ stacked on an identity, which is not computed: 2·width·rank + width weights
    and multiply-adds. V has variance 1/width, U and d 1/(rank + 1).
    """

    def __init__(self, width: int, rank: int, *, bias: bool = True) -> None:
        super().__init__(Dense(width, rank, bias=False), BesideDiagonal(width, rank, bias=bias))

    def to_dense(self) -> Tensor:
        """Return U Vᵀ + diag(d), (width, width)."""
        transposed, last = (factor.weight for factor in self.factors)
        return last[:, :-1] @ transposed + torch.diag(last[:, -1])

    def _map(self, x_mb: Tensor) -> Tensor:
        first, last = self.factors
        if x_mb.shape[1] % blocks.IMAGES == 0 and blocks.is_for(x_mb, first.weight, first.out_width):
            if is_packed():
                return for_all_runs(blocks.low_rank_of_runs, x_mb, first.weight, last.weight, last.bias)
            return blocks.low_rank(x_mb, first.weight, last.weight, last.bias)
        return cast(BesideDiagonal, last).of_parts(first(x_mb, features_first=True), x_mb)


def linear_maps(module: nn.Module) -> Iterator[SparseMap | Factors]:
    """Yield the linear maps of a module in order; a product is one map, whose factors are not listed."""
    if isinstance(module, SparseMap | Factors):
        yield module
        return
    for child in module.children():
        yield from linear_maps(child)
