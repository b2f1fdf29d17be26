"""What all layers have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn


class SparseMap(nn.Module, ABC):
    """y = M x + b on the last axis, M of shape (out_width, in_width) and mostly zero.

    Called with ``features_first=True`` it is the same map in the layout between a network's stem and head, where the
    batch comes after the features: (in_width, batch) to (out_width, batch), or where the map ``takes_tables`` one table
    of features that are stored row by row to another, (rows, batch, columns).
    """

    in_width: int
    out_width: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    takes_tables: bool = False
    distribution: Literal["normal", "uniform"] = "normal"
    """Of fresh weights; ``uniform`` is PyTorch's own, for biases too, at the effective fan-in (Golubeva et al.)."""

    @property
    @abstractmethod
    def connections(self) -> int:
        """Nonzeros of the effective matrix, counting structural ones whatever their value."""

    @property
    def weights(self) -> int:
        """Trainable weights behind the connections; biases are not counted."""
        return self.weight.numel()

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The effective matrix (out_width, in_width)."""

    @abstractmethod
    def dense_bias(self) -> Tensor:
        """The effective bias (out_width,), zero where there is none."""

    @property
    def weight_std(self) -> float:
        """Standard deviation of a fresh weight: 1/sqrt(mean effective fan-in)."""
        return math.sqrt(self.out_width / max(1, self.connections))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights from N(0, weight_std²) on the CPU, so that every device starts from the same; biases 0.

        With a uniform distribution both come from ±1/sqrt(mean effective fan-in).
        """
        with torch.no_grad():
            if self.distribution == "uniform":
                bound = math.sqrt(self.out_width / max(1, self.connections))
                for parameter in (self.weight, self.bias):
                    if parameter is not None:
                        parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
                return
            self.weight.copy_(torch.randn(self.weight.shape, generator=generator) * self.weight_std)
            if self.bias is not None:
                self.bias.zero_()
