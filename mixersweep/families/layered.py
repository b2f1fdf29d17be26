"""Networks that are a list of weight tensors and have the same number of weights at every width."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from mixersweep import budget
from mixersweep.budget import Architecture, Request
from mixersweep.families.base import Family, ImageFacts


@dataclass(frozen=True, kw_only=True)
class LayeredFamily(Family):
    """Networks that are a list of weight tensors, each dense or with an exact random mask (Golubeva et al. 2021)."""

    hidden: ClassVar[bool] = False
    layers_per_block: ClassVar[int] = 2
    norms_per_block: ClassVar[int] = 0
    head: ClassVar[Literal["linear"]] = "linear"
    bias: ClassVar[bool] = True
    structure = "layered"

    @abstractmethod
    def layered(self, images: ImageFacts) -> budget.Layered:
        """The sizes of its layers, as ``budget.solve_layered`` counts them."""

    def solve(self, request: Request, images: ImageFacts) -> Architecture:
        """Solve the request with ``budget.solve_layered``; raises ``UserError`` where no network meets it."""
        return budget.solve_layered(request, self.layered(images))

    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """Count the image, and each layer's values before and after its activation function."""
        del recomputed
        return images.values + 2.0 * sum(self._outputs(a, images))

    def largest_layer(self, a: Architecture, images: ImageFacts) -> int:
        """The outputs of its largest layer."""
        return max(self._outputs(a, images))

    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """Zero: the estimate leaves out the indices of its sparse weights, which are few."""
        del a, batch_size, device_kind
        return 0.0

    def _outputs(self, a: Architecture, images: ImageFacts) -> list[int]:
        return [layer.outputs * layer.places for layer in self.layered(images).layers(a.width)]
