"""Networks that are widened at a fixed number of weights (Golubeva, Neyshabur & Gur-Ari 2021).

Their modules are in ``models/golubeva.py``.
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
    """An MLP with one hidden ReLU layer (Golubeva et al., Fig. 5)."""

    name: Literal["golubeva_mlp"]
    weights_total: Count
    storage: Literal["auto", "sparse", "dense"] = execution()
    network = "mixersweep.models.golubeva:GolubevaMLPNetwork"
    has_skips = False
    can_rewire = True
    look = FamilyLook("green", "p", "dots")

    def layered(self, images: ImageFacts) -> Layered:
        """The sizes of its two weight matrices."""
        return TwoLayerMLP(images.channels, images.size, images.classes, self.weights_total)


@dataclass(frozen=True, kw_only=True)
class GolubevaResNet18(LayeredFamily):
    """A sparse ResNet-18 with as many weights as a narrower dense one (Golubeva et al., Figs. 6 and 7)."""

    name: Literal["golubeva_resnet18"]
    base_width: Annotated[int, Ge(8), Le(64)]
    network = "mixersweep.models.golubeva:GolubevaResNet18Network"
    has_skips = True
    look = FamilyLook("sky", "h", "dots")

    def layered(self, images: ImageFacts) -> Layered:
        """The sizes of its convolution kernels and its head."""
        return ResNet18(images.channels, images.size, images.classes, self.base_width)


@dataclass(frozen=True)
class TwoLayerMLP(Layered):
    """MLP pixels -> width -> classes (Golubeva et al., Fig. 5), dense at width weights_total / (pixels + classes)."""

    weights_total: int
    name = "golubeva_mlp"
    setting = "model.weights_total"
    depth = 1

    @property
    def narrowest(self) -> int:
        """The width at which it is dense, rounded up."""
        return -(-self.weights_total // (self.image_channels * self.image_size**2 + self.classes))

    def total(self) -> int:
        """The number of weights, as set by ``model.weights_total``."""
        return self.weights_total

    def layers(self, width: int) -> list[Layer]:
        """Its two matrices, with biases."""
        pixels = self.image_channels * self.image_size**2
        return [Layer(width, pixels, bias=True), Layer(self.classes, width, part="head", bias=True)]


@dataclass(frozen=True)
class ResNet18(Layered):
    """The CIFAR version of ResNet-18: its first convolution is 3x3, and no max pooling follows it.

    The width is the first convolution's output channels, doubled in each of the three later stages.
    """

    base_width: int
    name = "golubeva_resnet18"
    setting = "model.base_width"
    depth = 8

    @property
    def narrowest(self) -> int:
        """The base width, at which it is dense."""
        return self.base_width

    def layers(self, width: int) -> list[Layer]:
        """All kernels in order (a block's shortcut follows its two convolutions), then the head."""
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
