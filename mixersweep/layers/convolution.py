"""A convolution whose kernel has a static random mask (Golubeva et al. 2021).

As in ``sparse``, the trainable parameter is the vector of nonzeros, and checkpoints hold no mask: its seed redraws it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap


class SparseConv(SparseMap):
    """A sparse 2d convolution with a square kernel and no bias, zero-padded so that stride 1 keeps the image size.

    As a linear map it takes a patch of in_channels·size·size values, in the order of ``F.unfold``, to ``out_channels``.
    """

    positions: Tensor

    def __init__(self, in_channels: int, out_channels: int, size: int, positions: Tensor, *, stride: int = 1) -> None:
        """``positions`` are the sorted flat indices (int64) of the nonzeros of the kernel.

        The kernel is (out_channels, in_channels, size, size); its weights are zero until ``initialize``.
        """
        super().__init__()
        self.shape = (out_channels, in_channels, size, size)
        self.in_width, self.out_width, self.stride = in_channels * size**2, out_channels, stride
        self.register_buffer("positions", positions, persistent=False)
        self.weight = nn.Parameter(torch.zeros(positions.numel()))
        self.bias = None

    @property
    def connections(self) -> int:
        """The number of nonzeros of the kernel."""
        return self.weight.numel()

    def to_dense(self) -> Tensor:
        """Return the kernel as a matrix (out_channels, in_channels·size·size)."""
        if self.connections == self.in_width * self.out_width:
            return self.weight.view(self.out_width, self.in_width)
        flat = self.weight.new_zeros(self.in_width * self.out_width).scatter(0, self.positions, self.weight)
        return flat.view(self.out_width, self.in_width)

    def dense_bias(self) -> Tensor:
        """Return zeros: the norm that follows has the bias."""
        return self.weight.new_zeros(self.out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H/stride), ceil(W/stride))."""
        return F.conv2d(x, self.to_dense().view(self.shape), stride=self.stride, padding=self.shape[-1] // 2)
