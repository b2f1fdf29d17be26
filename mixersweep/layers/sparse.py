"""The sparse-weight map M o A with a static random mask M (paper, section 3.4), as wide as its nonzeros allow.

The trainable parameter is the vector of nonzeros, row by row: masked weights do not exist, so that nothing can
revive them, and a checkpoint is O(connections) whatever way the product is computed. That way is ``storage``:

- ``sparse``: sums over the nonzeros, O(batch·connections) time and no (out_width, in_width) tensor anywhere;
- ``dense``: the nonzeros are written into a matrix at each step; faster where the mask is dense.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixersweep.layers import nonzeros
from mixersweep.layers.base import SparseMap
from mixersweep.layers.pack import is_packed, stacked
from mixersweep.layers.product import column, linear, product

Rescale = Literal["init", "forward", "none"]


class SparseWeights(SparseMap):
    """y = (M o A) x + b with the nonzeros of M at ``positions``."""

    row_of: Tensor
    column_of: Tensor
    row_starts: Tensor
    column_starts: Tensor
    by_column: Tensor
    rows_by_column: Tensor

    def __init__(
        self,
        in_width: int,
        out_width: int,
        positions: Tensor,
        *,
        bias: bool = True,
        rescale: Rescale = "init",
        storage: Literal["sparse", "dense"] = "sparse",
    ) -> None:
        super().__init__()
        self.in_width, self.out_width = in_width, out_width
        self.rescale, self.storage = rescale, storage
        rows, columns = positions // in_width, positions % in_width
        by_column = torch.argsort(columns, stable=True)
        kind = torch.int32 if max(positions.numel(), in_width, out_width) < 2**31 else torch.int64
        # structure is drawn anew from its seed, never stored: not part of the state dict
        for name, indices in (
            ("row_of", rows),
            ("column_of", columns),
            ("row_starts", _starts(rows, out_width)),
            ("column_starts", _starts(columns, in_width)),
            ("by_column", by_column),
            ("rows_by_column", rows[by_column]),
        ):
            self.register_buffer(name, indices.to(kind), persistent=False)
        self.weight = nn.Parameter(torch.zeros(positions.numel()))
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    @property
    def connections(self) -> int:
        """The nonzeros of the mask."""
        return self.weight.numel()

    @property
    def density(self) -> float:
        """p, as drawn."""
        return self.connections / (self.in_width * self.out_width)

    @property
    def weight_std(self) -> float:
        """``init``: 1/sqrt(mean fan-in); ``forward`` and ``none``: 1/sqrt(in_width) (section 4.3)."""
        return super().weight_std if self.rescale == "init" else 1 / math.sqrt(self.in_width)

    @property
    def structure(self) -> nonzeros.Structure:
        """Where the nonzeros are."""
        return nonzeros.Structure(*self._places())

    def _places(self) -> tuple[Tensor, ...]:
        return self.row_starts, self.column_of, self.column_starts, self.rows_by_column, self.by_column

    def values(self) -> Tensor:
        """The nonzeros as they act: with ``rescale=forward`` divided by sqrt(density)."""
        return self.weight / math.sqrt(self.density) if self.rescale == "forward" else self.weight

    def to_dense(self) -> Tensor:
        """The effective matrix, zeros and all."""
        matrix = self.weight.new_zeros(self.out_width, self.in_width)
        return matrix.index_put((self.row_of.long(), self.column_of.long()), self.values())

    def dense_bias(self) -> Tensor:
        """The bias."""
        return self.weight.new_zeros(self.out_width) if self.bias is None else self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(batch, in_width) to (batch, out_width), or (in_width, batch) to (out_width, batch)."""
        if features_first:
            return self._columns(x)
        if self.storage == "dense":
            return linear(x, self.to_dense(), self.bias)
        return self._columns(x.t().contiguous()).t()

    def _columns(self, x_mb: Tensor) -> Tensor:
        """The layout that the CSR kernels want."""
        if self.storage == "dense":
            return product(self.to_dense(), x_mb, column(self.bias))
        with torch.autocast(x_mb.device.type, enabled=False):  # the kernels for nonzeros are fp32's
            x_mb, values = x_mb.to(self.weight.dtype), self.values()
            if is_packed():
                return stacked(_products, x_mb, values, self.bias, *self._places())
            y_mb: Tensor = _SparseProduct.apply(x_mb, values, self.bias, self.structure)
        return y_mb


def _products(x_rmb: Tensor, values: Tensor, bias: Tensor | None, *structure: Tensor) -> Tensor:
    """Of R runs, as one matrix: (R, in_width, batch), (R, nonzeros), (R, out_width) or None; places are (R, ...)."""
    whole = nonzeros.stacked(nonzeros.Structure(*structure))
    flat = None if bias is None else bias.flatten()
    y: Tensor = _SparseProduct.apply(x_rmb.flatten(0, 1), values.flatten(), flat, whole)
    return y.view(len(x_rmb), -1, x_rmb.shape[2])


class _SparseProduct(torch.autograd.Function):
    """The sparse matrix times x (in_width, batch), plus a bias; all gradients in O(batch·connections).

    A compiler sees the two kernels as they are: it knows no CSR, and its own loops over nonzeros are slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, structure: nonzeros.Structure) -> Tensor:
        ctx.structure = structure
        ctx.save_for_backward(x, values)
        return structure.product(values, x, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        (gradient,) = gradients
        of_x, of_values = ctx.structure.gradients(values, x, gradient)
        return of_x, of_values, gradient.sum(1) if ctx.needs_input_grad[2] else None, None


def _starts(sorted_or_not: Tensor, size: int) -> Tensor:
    """Where each row begins: cumulated counts, (size + 1,)."""
    counts = torch.bincount(sorted_or_not, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
