"""Permutations of m features: the identity, the commutation matrix J_c, any by its indices, and random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixersweep.layers import fused, moves
from mixersweep.layers.gather import gathered
from mixersweep.layers.pack import is_packed, stacked
from mixersweep.layers.tables import from_table, to_table


class Permutation(nn.Module):
    """y = J x on the last axis of size ``width``; the base class is the identity."""

    __call__: Callable[..., Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def indices(self) -> Tensor:
        """y = x[..., indices]; int64, on the CPU."""
        return torch.arange(self.width, device="cpu")

    def then(self, following: Permutation) -> Permutation:
        """This permutation and another after it, as one; the identity where they cancel."""
        indices = self.indices()[following.indices()]
        if torch.equal(indices, Permutation.indices(self)):
            return Permutation(self.width)
        return IndexPermutation(indices, following.rows if isinstance(following, IndexPermutation) else None)

    def to_dense(self) -> Tensor:
        """The permutation matrix (width, width)."""
        return torch.eye(self.width, dtype=torch.float64, device="cpu")[self.indices()]

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(batch, width) to (batch, width), or (width, batch) to (width, batch)."""
        del features_first
        return x


Identity = Permutation


class Commutation(Permutation):
    """J_c: the features of a (rows, columns) matrix, stored row by row, in the order of its transpose (eq 8)."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows * columns)
        self.rows, self.columns = rows, columns

    def indices(self) -> Tensor:
        """The transpose of the table of positions."""
        return super().indices().view(self.rows, self.columns).t().reshape(-1)

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(batch, rows·columns) to (batch, columns·rows), or with the batch last: a strided copy."""
        if features_first:
            return x.reshape(self.rows, self.columns, -1).transpose(0, 1).reshape(self.width, -1)
        return x.reshape(-1, self.rows, self.columns).transpose(1, 2).reshape(-1, self.width)


def turned(x: Tensor) -> Tensor:
    """The transpose of a matrix, contiguous, as is its gradient: J_c of the table in its rows."""
    if x.t().is_contiguous():
        return x.t()
    if is_packed():
        return stacked(_turned_of_runs, x)
    copied: Tensor = _Turn.apply(x)
    return copied


def _turned_of_runs(x_rnm: Tensor) -> Tensor:
    """Of R runs: (R, n, m) to (R, m, n)."""
    return moves.turned(x_rnm) if fused.is_for(x_rnm) else x_rnm.mT.contiguous()


class _Turn(torch.autograd.Function):
    """A copy that transposes a matrix, and one back: autograd's own would leave a strided view for what comes next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.t().contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        (gradient,) = gradients
        back: Tensor = _Turn.apply(gradient)
        return back


class IndexPermutation(Permutation):
    """y = x[..., indices], fixed for life. Forward and backward are both gathers.

    With ``rows``, what it gives with features first lies in memory as the table (rows, batch, columns) that comes next.
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
        # structure is drawn anew from its seed, never stored: not part of the state dict
        self.register_buffer("forward_indices", indices, persistent=False)
        self.register_buffer("inverse_indices", inverse, persistent=False)

    def indices(self) -> Tensor:
        """As given."""
        return self.forward_indices.cpu()

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(batch, width) to (batch, width), or (width, batch) to (width, batch), whose rows move as a whole.

        Features first, x may be (rows, columns, batch), in any order in memory, as is with ``rows`` what is returned.
        """
        there, back = self.forward_indices, self.inverse_indices
        if not features_first:
            return gathered(x, there, back, -1)
        if self.rows is not None:
            return to_table(x.reshape(self.width, -1), there, back, self.rows).transpose(1, 2)
        if x.dim() == 3 and (x_rbc := x.transpose(1, 2)).is_contiguous():
            return from_table(x_rbc, back, there)
        return gathered(x.reshape(self.width, -1), there, back, 0)


class RandomPermutation(IndexPermutation):
    """A uniformly random permutation (section 5.2)."""

    def __init__(self, width: int, generator: torch.Generator, rows: int | None = None) -> None:
        super().__init__(torch.randperm(width, generator=generator, device=generator.device), rows)
