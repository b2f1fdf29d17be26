"""A convolution whose kernel has a static random mask (Golubeva et al. 2021).

As in ``sparse``, the trainable parameter is the vector of nonzeros, and structure is drawn anew from its seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap


class SparseConv(SparseMap):
    """A square kernel without bias, zero-padded so that stride 1 keeps the size of an image.

    As a linear map it takes a patch, (in_channels·size·size) in the order of ``F.unfold``, to ``out_channels``.
    """

    positions: Tensor

    def __init__(self, in_channels: int, out_channels: int, size: int, positions: Tensor, *, stride: int = 1) -> None:
        """``positions``: sorted, flat, of the nonzeros in the (out_channels, in_channels, size, size) kernel."""
        super().__init__()
        self.shape = (out_channels, in_channels, size, size)
        self.in_width, self.out_width, self.stride = in_channels * size**2, out_channels, stride
        self.register_buffer("positions", positions, persistent=False)
        self.weight = nn.Parameter(torch.zeros(positions.numel()))
        self.bias = None

    @property
    def connections(self) -> int:
        """The nonzeros of the kernel."""
        return self.weight.numel()

    def to_dense(self) -> Tensor:
        """The kernel as a matrix (out_channels, in_channels·size·size), zeros and all."""
        if self.connections == self.in_width * self.out_width:
            return self.weight.view(self.out_width, self.in_width)
        flat = self.weight.new_zeros(self.in_width * self.out_width).scatter(0, self.positions, self.weight)
        return flat.view(self.out_width, self.in_width)

    def dense_bias(self) -> Tensor:
        """Zero: a norm follows."""
        return self.weight.new_zeros(self.out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H/stride, W/stride), rounded up."""
        return F.conv2d(x, self.to_dense().view(self.shape), stride=self.stride, padding=self.shape[-1] // 2)
