"""The dense linear map of stems, heads, skip layers and the dense MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap
from mixersweep.layers.product import column, linear, product


class Dense(SparseMap):
    """``nn.Linear`` with weights of zero until ``initialize``, so that it leaves the global random state alone."""

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_width, self.out_width = in_width, out_width
        self.weight = nn.Parameter(torch.zeros(out_width, in_width))
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    @property
    def connections(self) -> int:
        """The number of entries of the weight matrix."""
        return self.weight.numel()

    def to_dense(self) -> Tensor:
        """Return the weight itself, (out_width, in_width)."""
        return self.weight

    def dense_bias(self) -> Tensor:
        """Return the bias (out_width,), zeros where there is none."""
        return self.weight.new_zeros(self.out_width) if self.bias is None else self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Map (..., in_width) to (..., out_width); with ``features_first`` (in_width, B) to (out_width, B)."""
        if not features_first:
            return linear(x, self.weight, self.bias)
        return product(self.weight, x, column(self.bias))
