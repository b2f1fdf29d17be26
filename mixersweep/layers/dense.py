"""The dense matrix: stems, heads, skip layers and the dense MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap
from mixersweep.layers.product import column, linear, product


class Dense(SparseMap):
    """A plain linear map, which draws nothing from the global random state when it is made."""

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_width, self.out_width = in_width, out_width
        self.weight = nn.Parameter(torch.zeros(out_width, in_width))
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    @property
    def connections(self) -> int:
        """All of them."""
        return self.weight.numel()

    def to_dense(self) -> Tensor:
        """The weight."""
        return self.weight

    def dense_bias(self) -> Tensor:
        """The bias."""
        return self.weight.new_zeros(self.out_width) if self.bias is None else self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(..., in_width) to (..., out_width), or (in_width, batch) to (out_width, batch)."""
        if not features_first:
            return linear(x, self.weight, self.bias)
        return product(self.weight, x, column(self.bias))
