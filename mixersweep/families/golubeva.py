"""Golubeva, Neyshabur & Gur-Ari 2021: networks that widen at a fixed number of weights.

Their networks are in ``models/golubeva.py``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from mixersweep.budget import Layer, Layered
from mixersweep.families.base import FamilyLook, ImageFacts
from mixersweep.families.layered import LayeredFamily
from mixersweep.kinds import Count, execution


@dataclass(frozen=True, kw_only=True)
class GolubevaMLP(LayeredFamily):
    """One hidden ReLU layer (Golubeva et al., Fig. 5)."""

    name: Literal["golubeva_mlp"]
    weights_total: Count
    storage: Literal["auto", "sparse", "dense"] = execution()
    network = "mixersweep.models.golubeva:GolubevaMLPNetwork"
    has_skips = False
    look = FamilyLook("green", "p", "dots")

    def layered(self, images: ImageFacts) -> Layered:
        """Two matrices."""
        return TwoLayerMLP(images.channels, images.size, images.classes, self.weights_total)


@dataclass(frozen=True, kw_only=True)
class GolubevaResNet18(LayeredFamily):
    """ResNet-18 with the weights of a narrower dense one (Golubeva et al., Figs. 6 and 7)."""

    name: Literal["golubeva_resnet18"]
    base_width: Annotated[int, Ge(8), Le(64)]
    network = "mixersweep.models.golubeva:GolubevaResNet18Network"
    has_skips = True
    look = FamilyLook("sky", "h", "dots")

    def layered(self, images: ImageFacts) -> Layered:
        """Its kernels and the head."""
        return ResNet18(images.channels, images.size, images.classes, self.base_width)


@dataclass(frozen=True)
class TwoLayerMLP(Layered):
    """pixels -> width -> classes (Golubeva et al., Fig. 5); its base width is weights_total / (pixels + classes)."""

    weights_total: int
    name = "golubeva_mlp"
    setting = "model.weights_total"
    depth = 1

    @property
    def narrowest(self) -> int:
        """The base width; where that is no whole number, the next."""
        return -(-self.weights_total // (self.image_channels * self.image_size**2 + self.classes))

    def total(self) -> int:
        """As it was set."""
        return self.weights_total

    def layers(self, width: int) -> list[Layer]:
        """Two matrices, with biases."""
        pixels = self.image_channels * self.image_size**2
        return [Layer(width, pixels, bias=True), Layer(self.classes, width, part="head", bias=True)]


@dataclass(frozen=True)
class ResNet18(Layered):
    """ResNet-18 as CIFAR has it: the first convolution is 3x3 and there is no pooling before the head.

    The width is the first convolution's output channels, doubled in each of the three later stages.
    """

    base_width: int
    name = "golubeva_resnet18"
    setting = "model.base_width"
    depth = 8

    @property
    def narrowest(self) -> int:
        """The base width."""
        return self.base_width

    def layers(self, width: int) -> list[Layer]:
        """The kernels, a block's shortcut after its two, and the head."""
        size = self.image_size
        found = [Layer(width, 9 * self.image_channels, size**2, norm=True)]
        channels = width
        for stage, block in itertools.product(range(4), range(2)):
            outputs = width * 2**stage
            size = -(-size // 2) if stage and not block else size
            found.append(Layer(outputs, 9 * channels, size**2, norm=True))
            found.append(Layer(outputs, 9 * outputs, size**2, norm=True))
            if channels != outputs:
                found.append(Layer(outputs, channels, size**2, part="skip", norm=True))
            channels = outputs
        return [*found, Layer(self.classes, channels, part="head", bias=True)]
