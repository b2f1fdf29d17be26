"""S-FC, the dense equivalent of a shallow convolutional network, which beta-LASSO prunes (Neyshabur 2020).

Its module is in ``models/s_fc.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixersweep.budget import Layer, Layered
from mixersweep.errors import UserError
from mixersweep.families.base import FamilyLook, ImageFacts
from mixersweep.families.layered import LayeredFamily
from mixersweep.kinds import Count


@dataclass(frozen=True, kw_only=True)
class SFC(LayeredFamily):
    """S-FC, whose first layer can express a convolution with ``alpha`` channels."""

    name: Literal["s_fc"]
    alpha: Count
    network = "mixersweep.models.s_fc:SFCNetwork"
    has_skips = False
    look = FamilyLook("gold", "d", "dots")

    def layered(self, images: ImageFacts) -> Layered:
        """The sizes of its three weight matrices."""
        return ThreeMatrices(images.channels, images.size, images.classes, self.alpha)


@dataclass(frozen=True)
class ThreeMatrices(Layered):
    """S-FC: a dense equivalent of a stride-2 convolution to alpha channels, then 24·alpha, then classes."""

    alpha: int
    name = "s_fc"
    setting = "model.alpha"
    depth = 1

    @property
    def narrowest(self) -> int:
        """The only width that it has: 256·alpha for images of 32 x 32 pixels."""
        return (-(-self.image_size // 2)) ** 2 * self.alpha

    def layers(self, width: int) -> list[Layer]:
        """Its three matrices; the first two have norms in place of biases."""
        hidden = 24 * self.alpha
        pixels = self.image_channels * self.image_size**2
        return [
            Layer(width, pixels, norm=True),
            Layer(hidden, width, norm=True),
            Layer(self.classes, hidden, part="head", bias=True),
        ]

    def check(self, width: int) -> None:
        """Raise ``UserError`` for any width but its only one."""
        if width != self.narrowest:
            one = self.narrowest // self.alpha
            raise UserError(
                f"width={width}: s_fc with model.alpha={self.alpha} has the one width {self.narrowest}; "
                f"leave width=auto, the nearest to {width} is model.alpha={max(1, round(width / one))}"
            )
