"""MLPs whose mixing layers are products of sparse factors, with stem, head and layers of an ``sw_mlp`` otherwise.

The connections of a mixing layer are the nonzeros of all its factors together, so that families of equal depth and
connections have as many weights and multiply-adds in all, whatever the number of factors; each layer has one norm, one
activation and one bias. (The two factors of a ``monarch`` block count as its two mixing layers.) The arithmetic of
sizes is in ``budget.factored``, the layers are in ``layers.factors``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from mixersweep import budget
from mixersweep.budget import Architecture, Request
from mixersweep.families.base import FamilyLook, ImageFacts
from mixersweep.families.mlps import MLPFamily

if TYPE_CHECKING:
    from torch import Generator

    from mixersweep.layers import Factors, Plane


@dataclass(frozen=True, kw_only=True)
class ProductMLP(MLPFamily):
    """MLPs whose square mixing layers are products of factors."""

    hidden: ClassVar[bool] = False
    structure = "product"

    @property
    @abstractmethod
    def factored(self) -> budget.Factored:
        """The arithmetic of its layers."""

    @abstractmethod
    def inner(self, a: Architecture) -> float:
        """The numbers per image that a layer keeps between its factors for the backward pass."""

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Add the arithmetic of the layers to the request."""
        return replace(super().request(asked, images), factored=self.factored)

    def layer_activations(self, a: Architecture) -> float:
        """How many numbers per image a layer keeps, those between its factors included."""
        return super().layer_activations(a) + self.inner(a)


@dataclass(frozen=True, kw_only=True)
class LowRank(ProductMLP):
    """Layers U Vᵀ + diag(d) with U and V of width x rank, which the connections width·(2·rank + 1) determine.

    The null model of sparsity: as wide and with as few weights as the sparse families, and not sparse. Low-rank layers
    in place of dense ones: Sainath et al. 2013, "Low-rank matrix factorization for deep neural network training with
    high-dimensional output targets"; the diagonal makes the rank full.
    """

    name: Literal["low_rank"]
    factored = budget.LowRank()
    look = FamilyLook("grey", "d", "solid")

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> Factors:
        """Build U Vᵀ + diag(d); nothing in it is random but the weights."""
        from mixersweep import layers

        del outputs, generator, plane
        return layers.LowRank(inputs, self.factored.rank(inputs, connections), bias=self.bias)

    def inner(self, a: Architecture) -> float:
        """The rank."""
        return self.factored.rank(a.width, int(a.connections))
