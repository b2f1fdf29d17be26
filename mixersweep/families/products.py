"""MLPs whose mixing layers are products of sparse factors, with stem, head and layers of an ``sw_mlp`` otherwise.

The connections of a mixing layer are the nonzeros of all its factors together, so that families of equal depth and
connections have as many weights and multiply-adds in all, whatever the number of factors; each layer has one norm, one
activation and one bias. (The two factors of a ``monarch`` block count as its two mixing layers.) The arithmetic of
sizes is in ``budget.factored``, the layers are in ``layers.factors``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from mixersweep import budget
from mixersweep.budget import Architecture, Request
from mixersweep.families.base import FamilyLook, ImageFacts
from mixersweep.families.mlps import MLPFamily
from mixersweep.kinds import Auto, Count

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
        """The numbers per image that a layer keeps between its factors for the backward pass.

        Kernels of our own on a CPU may keep fewer (``layers.blocks``).
        """

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

    @classmethod
    def matrix_rank(cls, width: int, connections: int) -> int:
        """The rank of U Vᵀ, without the diagonal."""
        return cls.factored.rank(width, connections)

    def inner(self, a: Architecture) -> float:
        """The rank."""
        return self.matrix_rank(a.width, int(a.connections))


@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(ProductMLP):
    """Layers of dense b x b blocks on the diagonal, each its own, of the size b that the connections width·b leave.

    With ``permuted`` a fixed random permutation of the features stands before each layer, without it blocks never mix.
    Structured dropping of connections: Dao et al. 2022 (arXiv 2204.00595) have two such factors in a Monarch matrix;
    Nesky & Stout 2018 (arXiv 1805.01028) the blocks with random permutations between.
    """

    name: Literal["block_diagonal"]
    permuted: bool
    factored = budget.Blocks()
    look = FamilyLook("sky", "s", "dots")

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> Factors:
        """Build the blocks; the permutation before them is drawn from the generator."""
        from mixersweep import layers

        del outputs, plane
        before = layers.RandomPermutation(inputs, generator) if self.permuted else None
        return layers.block_diagonal(inputs, self.factored.size(inputs, connections), bias=self.bias, before=before)

    def inner(self, a: Architecture) -> float:
        """Nothing: blocks keep the permuted features in the place of the others."""
        del a
        return 0


@dataclass(frozen=True, kw_only=True)
class BTT(ProductMLP):
    """Layers that are block tensor trains: two factors of untied blocks, each block of rank ``rank`` between them.

    On features that are a matrix of S x C, S >= C, rank·width·(S + C) connections (Qiu et al. 2024, arXiv 2406.06248).
    Of rank 1 a layer is a Monarch matrix (``model=monarch``), with one bias and one norm.
    """

    name: Literal["btt"]
    rank: Count
    look = FamilyLook("gold", "D", "long")

    @property
    def factored(self) -> budget.BTT:
        """The arithmetic of its layers."""
        return budget.BTT(self.rank)

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> Factors:
        """Build the two factors; nothing in them is random but the weights."""
        from mixersweep import layers

        del outputs, generator, plane
        rows, columns = self.factored.shape(inputs, connections)
        return layers.block_tensor_train(rows, columns, self.rank, bias=self.bias)

    def inner(self, a: Architecture) -> float:
        """What the first factor gives, ``rank`` times the width."""
        return self.rank * a.width


@dataclass(frozen=True, kw_only=True)
class Butterfly(ProductMLP):
    """Layers that are products of many factors, with small blocks along one axis of a table of features after another.

    A width that is the product of radices b_1, b_2, ... has a factor of b x b blocks for each of them, and so
    width·(b_1 + b_2 + ...) connections. ``factors`` is how many there are: ``auto``, as many as fit, has radices of 2,
    the butterfly of a fast Fourier transform (Dao et al. 2019, arXiv 1903.05895), or near to it. Where the budget
    leaves a choice, radices are as equal as it allows; two factors are a Monarch matrix.
    """

    name: Literal["butterfly"]
    factors: Annotated[int, Ge(2)] | Auto
    look = FamilyLook("blue", "X", "dots")

    @property
    def factored(self) -> budget.Butterfly:
        """The arithmetic of its layers."""
        return budget.Butterfly(None if self.factors == "auto" else self.factors)

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> Factors:
        """Build the factors; nothing in them is random but the weights."""
        from mixersweep import layers

        del outputs, generator, plane
        return layers.butterfly(self.factored.radices(inputs, connections), bias=self.bias)

    def inner(self, a: Architecture) -> float:
        """What each factor but the last gives."""
        return a.width * (len(self.factored.radices(a.width, int(a.connections))) - 1)
