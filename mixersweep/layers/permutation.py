"""Permutations of m features: the identity, the commutation matrix J_c, and those given by indices or drawn at random.

Hayase & Karakida 2024, eq 8 (J_c) and section 5.2 (random permutations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixersweep.layers import fused, moves
from mixersweep.layers.gather import gathered
from mixersweep.layers.layouts import mb_to_rbc, rbc_to_mb
from mixersweep.layers.pack import for_all_runs, is_packed


class Permutation(nn.Module):
    """The map y = J x of ``width`` features for a permutation matrix J; this base class is the identity."""

    __call__: Callable[..., Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def indices(self) -> Tensor:
        """Return the (width,) int64 indices on the CPU such that y = x[..., indices]."""
        return torch.arange(self.width, device="cpu")

    def then(self, following: Permutation) -> Permutation:
        """Compose: return this permutation followed by another as one, the identity where they cancel."""
        indices = self.indices()[following.indices()]
        if torch.equal(indices, Permutation.indices(self)):
            return Permutation(self.width)
        return IndexPermutation(indices, following.rows if isinstance(following, IndexPermutation) else None)

    def to_dense(self) -> Tensor:
        """Return the permutation matrix (width, width), float64."""
        return torch.eye(self.width, dtype=torch.float64, device="cpu")[self.indices()]

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Permute (B, width), or with ``features_first`` (width, B)."""
        del features_first
        return x


Identity = Permutation


class Commutation(Permutation):
    """The commutation matrix J_c, which takes X (rows, columns) to Xᵀ, each stored row by row (eq 8)."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows * columns)
        self.rows, self.columns = rows, columns

    def indices(self) -> Tensor:
        """Return the indices 0 ... width - 1 as a (rows, columns) matrix, transposed and flattened."""
        return super().indices().view(self.rows, self.columns).t().reshape(-1)

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Permute (B, width), or with ``features_first`` (width, B), by a strided copy."""
        if features_first:
            return x.reshape(self.rows, self.columns, -1).transpose(0, 1).reshape(self.width, -1)
        return x.reshape(-1, self.rows, self.columns).transpose(1, 2).reshape(-1, self.width)


def transposed(x: Tensor) -> Tensor:
    """Return the contiguous transpose of a matrix (n, m); its gradient is contiguous too."""
    if x.t().is_contiguous():
        return x.t()
    if is_packed():
        return for_all_runs(_transposed_runs, x)
    copied: Tensor = _Transpose.apply(x)
    return copied


def _transposed_runs(x_rnm: Tensor) -> Tensor:
    """Transpose the matrix of each of R runs: (R, n, m) to (R, m, n)."""
    return moves.transposed(x_rnm) if fused.is_for(x_rnm) else x_rnm.mT.contiguous()


class _Transpose(torch.autograd.Function):
    """A transposing copy whose gradient is copied too: autograd's own gradient would be a strided view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.t().contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        (gradient,) = gradients
        back: Tensor = _Transpose.apply(gradient)
        return back


class IndexPermutation(Permutation):
    """A permutation by fixed indices, y = x[..., indices]; forward and backward are both gathers.

    With ``rows`` and features first, the result is (rows, columns, B), stored in memory as the contiguous
    (rows, B, columns) that the next layer takes.
    """

    forward_indices: Tensor
    inverse_indices: Tensor

    def __init__(self, indices: Tensor, rows: int | None = None) -> None:
        super().__init__(indices.numel())
        self.rows = rows
        inverse = indices.argsort()
        assert torch.equal(indices[inverse], torch.arange(self.width, device=indices.device)), (
            "each of 0, 1, ..., width - 1 once"
        )
        # not in the state dict: the seed redraws the structure
        self.register_buffer("forward_indices", indices, persistent=False)
        self.register_buffer("inverse_indices", inverse, persistent=False)

    def indices(self) -> Tensor:
        """Return the indices as given, on the CPU."""
        return self.forward_indices.cpu()

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Permute (B, width), or with ``features_first`` the rows of (width, B).

        With features first, x may also be (rows, columns, B), stored in any order; with ``self.rows`` the result is.
        """
        there, back = self.forward_indices, self.inverse_indices
        if not features_first:
            return gathered(x, there, back, -1)
        if self.rows is not None:
            return mb_to_rbc(x.reshape(self.width, -1), there, back, self.rows).transpose(1, 2)
        if x.dim() == 3 and (x_rbc := x.transpose(1, 2)).is_contiguous():
            return rbc_to_mb(x_rbc, back, there)
        return gathered(x.reshape(self.width, -1), there, back, 0)


class RandomPermutation(IndexPermutation):
    """A permutation drawn uniformly at random (section 5.2)."""

    def __init__(self, width: int, generator: torch.Generator, rows: int | None = None) -> None:
        super().__init__(torch.randperm(width, generator=generator, device=generator.device), rows)
