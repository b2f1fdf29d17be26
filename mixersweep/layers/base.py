"""The base class of all sparse linear maps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class SharedParameter(NamedTuple):
    """A parameter that ``copies`` blocks share; ``likeness`` is the mean cos² of the inputs of two of them."""

    parameter: nn.Parameter
    copies: int
    likeness: float


@runtime_checkable
class SharesParameters(Protocol):
    """A module that says which of its parameters blocks, tokens or channels share (``training.width_scaling``)."""

    def shared_parameters(self) -> list[SharedParameter]:
        """The shared parameters with the number of their copies; empty if there are none."""


class SparseMap(nn.Module, ABC):
    """A linear map y = M x + b on the last axis, whose matrix M (out_width, in_width) is mostly zero.

    With ``features_first=True`` the same map takes (in_width, B) to (out_width, B), or, where it ``takes_rbc``,
    (rows, B, columns) to (rows, B, columns). ``mixersweep.layers`` describes these layouts.
    """

    in_width: int
    out_width: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    takes_rbc: bool = False
    distribution: Literal["normal", "uniform"] = "normal"
    """The distribution that weights are initialised from; ``uniform`` is PyTorch's default with the effective fan-in in
    place of in_width, for biases too (Golubeva et al. 2021).
    """

    @property
    @abstractmethod
    def connections(self) -> int:
        """The number of structural nonzeros of the effective matrix: entries that may be nonzero."""

    @property
    def weights(self) -> int:
        """The number of trainable weights behind the connections, without biases."""
        return self.weight.numel()

    @abstractmethod
    def to_dense(self) -> Tensor:
        """Return the effective matrix (out_width, in_width), differentiable in the weights."""

    @abstractmethod
    def dense_bias(self) -> Tensor:
        """Return the effective bias (out_width,), zeros where the map has none."""

    @property
    def weight_std(self) -> float:
        """The standard deviation that weights are initialised with: 1/sqrt(mean effective fan-in)."""
        return math.sqrt(self.out_width / max(1, self.connections))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights from N(0, weight_std²) and set the biases to 0.

        With ``distribution="uniform"`` both are drawn from U(-a, a), a = 1/sqrt(mean effective fan-in). The generator
        is the CPU's, so that every device starts from the same numbers.
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
