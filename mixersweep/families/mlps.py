"""MLPs on the vectorised patch embedding: with static sparse weights (SW-MLP), or dense.

Hayase & Karakida 2024, section 3.4 and appendix A.2.5; their networks are in ``models/mlp.py``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from mixersweep import budget
from mixersweep.budget import Architecture, Request
from mixersweep.budget.storage import sparse_is_faster
from mixersweep.errors import Infeasible
from mixersweep.families.base import BlockFamily, FamilyLook, ImageFacts
from mixersweep.kinds import Count, MaskKind, execution, neutral

if TYPE_CHECKING:
    from torch import Generator

    from mixersweep.layers import Factors, Plane, SparseMap

FLOAT, INDICES = 4, 20
"""Bytes of a number in float32, and of the indices of a sparse weight (``layers.sparse``: three int32, one int64)."""


@dataclass(frozen=True, kw_only=True)
class MLPFamily(BlockFamily):
    """MLPs on vectors of m features, with one layer for each mixing layer of a Mixer (section 3.4)."""

    layers_per_block: Annotated[int, Ge(1), Le(2)]
    network = "mixersweep.models.mlp:MLPNetwork"

    @property
    def norms_per_block(self) -> int:
        """One LayerNorm before each mixing layer."""
        return self.layers_per_block

    @abstractmethod
    def linear_map(
        self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane
    ) -> SparseMap | Factors:
        """Build the linear map (B, inputs) to (B, outputs) of a mixing layer, with ``connections`` nonzero weights.

        A random mask is drawn from ``generator``; ``plane`` gives the positions of its units on the image.
        """


@dataclass(frozen=True, kw_only=True)
class MaskedMLP(MLPFamily):
    """MLPs whose weight matrices have fixed masks; ``storage`` only chooses how they are multiplied."""

    hidden: bool
    storage: Literal["auto", "sparse", "dense"] = execution()
    structure = "sparse"

    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """The indices of the nonzeros, and the dense matrices where products are dense."""
        matrices = a.mixing_layers * (2 if self.hidden else 1)
        indices = INDICES * a.connections * matrices
        fits = sparse_is_faster(a.width, a.hidden_width, int(a.connections), batch_size, device_kind)
        sparse = self.storage == "sparse" or (self.storage == "auto" and fits)
        return indices if sparse else indices + FLOAT * a.width * a.hidden_width * (matrices + 1)


@dataclass(frozen=True, kw_only=True)
class SWMLP(MaskedMLP):
    """MLP with static random sparse weights (section 3.4, appendix A.2.5)."""

    name: Literal["sw_mlp"]
    mask: MaskKind
    mask_size: Count = neutral(4)
    rescale: Literal["init", "forward", "none"]
    look = FamilyLook("green", "^", "dots")
    can_rewire = True

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> SparseMap:
        """Build a linear map whose weights have a random mask."""
        from mixersweep.layers import SparseWeights, draw_mask

        positions = draw_mask(outputs, inputs, connections, self.mask, generator, size=self.mask_size, plane=plane)
        return SparseWeights(inputs, outputs, positions, bias=self.bias, rescale=self.rescale)

    def solve(self, request: Request, images: ImageFacts) -> Architecture:
        """Solve the request; raises ``Infeasible`` where ``n_of_m`` groups do not divide a layer's inputs."""
        solved = super().solve(request, images)
        for inputs in (solved.width, solved.hidden_width) if self.hidden else (solved.width,):
            if self.mask == "n_of_m" and inputs % self.mask_size:
                divisors = [size for size in range(2, inputs + 1) if inputs % size == 0]
                near = min(divisors, key=lambda size: abs(size - self.mask_size))
                raise Infeasible(
                    f"model.mask_size={self.mask_size}: model.mask=n_of_m needs groups that divide the {inputs} inputs "
                    f"of a matrix; the nearest is {near}",
                    {"model.mask_size": near},
                )
        return solved

    def warnings(self, solved: Architecture, classes: int) -> list[str]:
        """Caveats for interpreting its accuracy, with those that its kind of mask adds."""
        pooled = self.head == "pool"
        unread = self._share_without_input(solved)
        found = budget.warnings(solved, self.structure, classes, pooled=pooled, share_without_input=unread)
        if self.mask == "bernoulli":
            found.append(
                f"model.mask=bernoulli draws how many connections there are: connections={solved.connections} is their "
                "mean, and connections_drawn of the record what was drawn"
            )
        return found

    def _share_without_input(self, a: Architecture) -> float:
        """The expected share of units without any input, in [0, 1], for this kind of mask."""
        if self.mask in (
            "fixed_fan_in",
            "degree_regular",
            "expansion",
            "diagonal",
        ):  # all have the fan-in's floor or ceiling
            return max(0.0, 1 - a.mean_fan_in)
        inputs = a.mean_fan_in / a.density
        if self.mask == "n_of_m":  # a group has none where its mean is below one, as often as that is
            return math.pow(max(0.0, 1 - a.density * self.mask_size), inputs / self.mask_size)
        drawn_at_once = self.mask_size if self.mask == "block" else 1
        return math.pow(1 - a.density, inputs / drawn_at_once)

    def alone_for(self) -> str | None:
        """``model.mask=bernoulli``: masks with unequal numbers of nonzeros cannot be stacked over runs."""
        return "model.mask=bernoulli" if self.mask == "bernoulli" else super().alone_for()


@dataclass(frozen=True, kw_only=True)
class Hashed(MaskedMLP):
    """MLP with random sparse weights that are shared at random (Chen et al. 2015, "HashedNets", arXiv 1504.04788).

    It is to an ``sw_mlp`` what a Mixer is to an untied one: ``sharing`` random connections have the same weight. (In
    HashedNets all entries of a matrix are connections.)
    """

    name: Literal["hashed"]
    sharing: Count
    look = FamilyLook("pink", "^", "solid")

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Add the number of connections that share a weight to the request."""
        return replace(super().request(asked, images), sharing=self.sharing)

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> SparseMap:
        """Build a linear map whose positions and weights are both drawn from the generator."""
        from mixersweep.layers import HashedWeights, draw_mask

        del plane
        positions = draw_mask(outputs, inputs, connections, "exact", generator)
        return HashedWeights(inputs, outputs, positions, self.sharing, generator, bias=self.bias)


@dataclass(frozen=True, kw_only=True)
class MLP(MLPFamily):
    """The dense MLP with the same number of connections."""

    name: Literal["mlp"]
    hidden: bool
    structure = "dense"
    look = FamilyLook("grey", "*", "dots")

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> SparseMap:
        """Build a dense linear map; the mask's arguments are not used."""
        from mixersweep.layers import Dense

        del connections, generator, plane
        return Dense(inputs, outputs, bias=self.bias)
