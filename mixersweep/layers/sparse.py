"""The sparse-weight map M ⊙ A with a random mask M (Hayase & Karakida 2024, section 3.4).

The trainable parameter is the vector of nonzeros, row by row: masked weights do not exist, so no optimiser can revive
them, and a checkpoint takes O(connections). The mask is static unless the layer is ``make_movable``. ``storage`` says
how the product is computed:

- ``sparse``: sums over the nonzeros, O(batch·connections) time and no (out_width, in_width) tensor anywhere;
- ``dense``: the nonzeros are scattered into a matrix at each step; faster where the mask is dense.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixersweep.layers import nonzeros
from mixersweep.layers.base import SparseMap
from mixersweep.layers.gather import gathered
from mixersweep.layers.pack import for_all_runs, is_packed
from mixersweep.layers.product import column, linear, product

Rescale = Literal["init", "forward", "none"]


class SparseWeights(SparseMap):
    """The map y = (M ⊙ A) x + b with the nonzeros of M at ``positions``, sorted flat indices (int64).

    ``rescale`` puts the factor for the mean fan-in into the initial weights (``init``), into each forward pass
    (``forward``), or nowhere (``none``); Hayase & Karakida 2024, section 4.3.
    """

    positions: Tensor | None
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
        # not in the state dict: the seed redraws the structure
        for name, indices in indices_of(positions, in_width, out_width).items():
            self.register_buffer(name, indices, persistent=False)
        self.register_buffer("positions", None)
        self.weight = nn.Parameter(torch.zeros(positions.numel()))
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    @property
    def connections(self) -> int:
        """The number of nonzeros of the mask."""
        return self.row_of.numel()

    @property
    def density(self) -> float:
        """The fraction p of nonzeros in the mask as drawn."""
        return self.connections / (self.in_width * self.out_width)

    @property
    def weight_std(self) -> float:
        """The standard deviation that weights are initialised with.

        With ``rescale=init`` 1/sqrt(mean fan-in), with ``forward`` and ``none`` 1/sqrt(in_width) (section 4.3).
        """
        return super().weight_std if self.rescale == "init" else 1 / math.sqrt(self.in_width)

    @property
    def structure(self) -> nonzeros.Structure:
        """The positions of the nonzeros, by rows and by columns."""
        return nonzeros.Structure(*self._index_tensors())

    def _index_tensors(self) -> tuple[Tensor, ...]:
        return self.row_starts, self.column_of, self.column_starts, self.rows_by_column, self.by_column

    def make_movable(self) -> None:
        """Keep the positions of the nonzeros in the state dict, as ``positions``, for they may ``move``."""
        self.register_buffer("positions", self.row_of.long() * self.in_width + self.column_of)

    def move(self, positions: Tensor) -> None:
        """Set the positions of the nonzeros: sorted flat indices (int64), as many as before, in place."""
        assert self.positions is not None, "make_movable comes first"
        self.positions.copy_(positions)
        for name, indices in indices_of(positions, self.in_width, self.out_width).items():
            getattr(self, name).copy_(indices)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        if self.positions is not None:
            self.move(self.positions)

    def values(self) -> Tensor:
        """Return the (connections,) nonzeros of the effective matrix: weights, rescaled with ``rescale=forward``."""
        return self.weight / math.sqrt(self.density) if self.rescale == "forward" else self.weight

    def to_dense(self) -> Tensor:
        """Return the effective matrix (out_width, in_width)."""
        matrix = self.weight.new_zeros(self.out_width, self.in_width)
        return matrix.index_put((self.row_of.long(), self.column_of.long()), self.values())

    def dense_bias(self) -> Tensor:
        """Return the bias (out_width,), zeros where there is none."""
        return self.weight.new_zeros(self.out_width) if self.bias is None else self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Map (B, in_width) to (B, out_width), or with ``features_first`` (in_width, B) to (out_width, B)."""
        if features_first:
            return self._multiply_features_first(x)
        if self.storage == "dense":
            return linear(x, self.to_dense(), self.bias)
        return self._multiply_features_first(x.t().contiguous()).t()

    def _multiply_features_first(self, x_mb: Tensor) -> Tensor:
        """Map (in_width, B) to (out_width, B), the layout of the CSR kernels."""
        if self.storage == "dense":
            return product(self.to_dense(), x_mb, column(self.bias))
        with torch.autocast(x_mb.device.type, enabled=False):  # the kernels for nonzeros take fp32
            x_mb, values = x_mb.to(self.weight.dtype), self.values()
            if is_packed():
                return for_all_runs(_products_of_runs, x_mb, values, self.bias, *self._index_tensors())
            y_mb: Tensor = _SparseProduct.apply(x_mb, values, self.bias, self.structure)
        return y_mb


class HashedWeights(SparseWeights):
    """The sparse map whose nonzeros share ceil(connections / sharing) weights at random (HashedNets, Chen et al. 2015).

    arXiv 1504.04788. All weights stand at as many random positions, or one fewer, where a hash function would have them
    so on average. There are no random signs, as in a Mixer, whose blocks share weights too.
    """

    order: Tensor
    inverse: Tensor

    def __init__(
        self, in_width: int, out_width: int, positions: Tensor, sharing: int, generator: torch.Generator, *, bias: bool
    ) -> None:
        super().__init__(in_width, out_width, positions, bias=bias)
        order = torch.randperm(positions.numel(), generator=generator, device=generator.device)
        # not in the state dict: the seed redraws the structure
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)
        self.weight = nn.Parameter(torch.zeros(-(-positions.numel() // sharing)))

    def weight_of(self) -> Tensor:
        """The weight of each nonzero, by its number: (connections,) int64."""
        return self.order % self.weight.numel()

    def values(self) -> Tensor:
        """Return the (connections,) nonzeros of the effective matrix; their gradients are summed by weight."""
        copies = -(-self.connections // self.weight.numel())
        every = self.weight.expand(copies, -1).reshape(-1)[: self.connections]
        return gathered(every, self.order, self.inverse, 0)


def _products_of_runs(x_rmb: Tensor, values: Tensor, bias: Tensor | None, *structure: Tensor) -> Tensor:
    """Multiply the stacked inputs of R runs by their sparse matrices, joined into one block-diagonal matrix.

    x is (R, in_width, B), values (R, nonzeros), the bias (R, out_width) or None, each tensor of the structure (R, ...);
    returns (R, out_width, B).
    """
    whole = nonzeros.block_diagonal(nonzeros.Structure(*structure))
    flat = None if bias is None else bias.flatten()
    y: Tensor = _SparseProduct.apply(x_rmb.flatten(0, 1), values.flatten(), flat, whole)
    return y.view(len(x_rmb), -1, x_rmb.shape[2])


class _SparseProduct(torch.autograd.Function):
    """The product of a sparse matrix and x (in_width, B), plus a bias; all gradients take O(B·connections).

    The kernels are opaque to ``torch.compile``: it knows no CSR, and its own loops over nonzeros are slower.
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


def indices_of(positions: Tensor, in_width: int, out_width: int) -> dict[str, Tensor]:
    """Return the index tensors of a layer whose nonzeros are at these sorted flat positions, by the buffers' names."""
    rows, columns = positions // in_width, positions % in_width
    by_column = torch.argsort(columns, stable=True)
    kind = torch.int32 if max(positions.numel(), in_width, out_width) < 2**31 else torch.int64
    found = {
        "row_of": rows,
        "column_of": columns,
        "row_starts": _starts(rows, out_width),
        "column_starts": _starts(columns, in_width),
        "by_column": by_column,
        "rows_by_column": rows[by_column],
    }
    return {name: indices.to(kind) for name, indices in found.items()}


def _starts(rows: Tensor, size: int) -> Tensor:
    """Return where each row begins among the nonzeros: cumulated counts, (size + 1,)."""
    counts = torch.bincount(rows, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
