"""MLPs on the vectorised patch embedding: with static sparse weights (SW-MLP), or dense.

Hayase & Karakida 2024, section 3.4 and appendix A.2.5; their networks are in ``models/mlp.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from mixersweep import budget
from mixersweep.budget import Architecture
from mixersweep.budget.storage import sparse_is_faster
from mixersweep.families.base import BlockFamily, FamilyLook
from mixersweep.kinds import execution

if TYPE_CHECKING:
    from torch import Generator

    from mixersweep.layers import SparseMap

FLOAT, INDICES = 4, 20
"""Bytes of a number in float32, and of the indices of a sparse weight (``layers.sparse``: three int32, one int64)."""


@dataclass(frozen=True, kw_only=True)
class MLPFamily(BlockFamily):
    """Networks on vectors of m features, with a mixing layer for each of a Mixer's (section 3.4)."""

    hidden: bool
    layers_per_block: Annotated[int, Ge(1), Le(2)]
    network = "mixersweep.models.mlp:MLPNetwork"

    @property
    def norms_per_block(self) -> int:
        """One before each mixing layer."""
        return self.layers_per_block

    @abstractmethod
    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator) -> SparseMap:
        """One linear map of a mixing layer with so many nonzeros; what is random in it is drawn from ``generator``."""


@dataclass(frozen=True, kw_only=True)
class MaskedMLP(MLPFamily):
    """MLPs whose matrices have static masks, of whatever pattern; how they are multiplied is no experiment."""

    storage: Literal["auto", "sparse", "dense"] = execution()
    structure = "sparse"

    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """The indices of the nonzeros; where products are dense, the matrices too."""
        matrices = a.mixing_layers * (2 if self.hidden else 1)
        indices = INDICES * a.connections * matrices
        fits = sparse_is_faster(a.width, a.hidden_width, int(a.connections), batch_size, device_kind)
        sparse = self.storage == "sparse" or (self.storage == "auto" and fits)
        return indices if sparse else indices + FLOAT * a.width * a.hidden_width * (matrices + 1)


@dataclass(frozen=True, kw_only=True)
class SWMLP(MaskedMLP):
    """MLP with static random sparse weights (section 3.4, appendix A.2.5)."""

    name: Literal["sw_mlp"]
    mask: Literal["exact", "bernoulli", "fixed_fan_in"]
    rescale: Literal["init", "forward", "none"]
    look = FamilyLook("green", "^", "dots")

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator) -> SparseMap:
        """A matrix with a random mask."""
        from mixersweep.layers import SparseWeights, draw_mask

        positions = draw_mask(outputs, inputs, connections, self.mask, generator)
        return SparseWeights(inputs, outputs, positions, bias=self.bias, rescale=self.rescale)

    def warnings(self, solved: Architecture, classes: int) -> list[str]:
        """With what the kind of its masks means for the fan-in and the connections."""
        pooled = self.head == "pool"
        found = budget.warnings(solved, self.structure, classes, mask=self.mask, pooled=pooled)
        if self.mask == "bernoulli":
            found.append(
                f"model.mask=bernoulli draws how many connections there are: connections={solved.connections} is their "
                "mean, and connections_drawn of the record what was drawn"
            )
        return found

    def alone_for(self) -> str | None:
        """Masks of which each has another number of nonzeros have no axis of runs."""
        return "model.mask=bernoulli" if self.mask == "bernoulli" else super().alone_for()


@dataclass(frozen=True, kw_only=True)
class MLP(MLPFamily):
    """The dense MLP with the same connections."""

    name: Literal["mlp"]
    structure = "dense"
    look = FamilyLook("grey", "*", "dots")

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator) -> SparseMap:
        """A matrix."""
        from mixersweep.layers import Dense

        del connections, generator
        return Dense(inputs, outputs, bias=self.bias)
