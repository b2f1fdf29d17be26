"""Band MLP: each unit of a mixing layer is connected to neighbours, where an SW-MLP's connections are random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mixersweep.families.base import FamilyLook
from mixersweep.families.mlps import MaskedMLP

if TYPE_CHECKING:
    from torch import Generator

    from mixersweep.layers import Plane, SparseMap


@dataclass(frozen=True, kw_only=True)
class BandMLP(MaskedMLP):
    """An MLP whose matrices have a band of nonzeros beside the diagonal, as wide as the connections allow."""

    name: Literal["band_mlp"]
    spread: bool
    look = FamilyLook("sky", "D", "long")

    def linear_map(self, inputs: int, outputs: int, connections: int, generator: Generator, plane: Plane) -> SparseMap:
        """A matrix with a band; nothing in it is random but the weights."""
        import torch

        from mixersweep.layers import SparseWeights

        del generator, plane
        each = -(-connections // outputs)  # the nonzeros of a row; of the last rows, perhaps one less
        step = inputs // each if self.spread else 1
        number = torch.arange(connections)
        row, place = number % outputs, number // outputs
        positions = row * inputs + (row + step * place) % inputs
        return SparseWeights(inputs, outputs, positions.sort().values, bias=self.bias)
