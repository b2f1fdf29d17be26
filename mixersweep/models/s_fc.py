"""S-FC: the fully-connected equivalent of a shallow convolutional network (Neyshabur 2020).

A dense layer of the size of a 9x9 convolution with stride 2 and alpha channels, one of 24·alpha units, and the head;
BatchNorm and ReLU follow all but the head. ``optim=beta_lasso`` is to learn the sparsity that a convolution has by
design.
"""

from __future__ import annotations

from torch import Tensor, nn

from mixersweep.budget import Architecture
from mixersweep.families.base import ImageFacts
from mixersweep.families.s_fc import SFC
from mixersweep.layers import Dense
from mixersweep.models.parts import BatchNorm, StructureSeed


class SFCNetwork(nn.Module):
    """A fully-connected network on all pixels with two hidden layers: (B, ch, H, W) to logits (B, classes)."""

    def __init__(
        self,
        settings: SFC,
        architecture: Architecture,
        images: ImageFacts,
        structure: StructureSeed,
    ) -> None:
        del structure
        super().__init__()
        pixels, width, hidden = architecture.patches * images.patch_values, architecture.width, 24 * settings.alpha
        self.layers = nn.Sequential()
        for inputs, outputs in ((pixels, width), (width, hidden)):
            self.layers.append(nn.Sequential(Dense(inputs, outputs, bias=False), BatchNorm(outputs), nn.ReLU()))
        self.head = Dense(hidden, images.classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, classes)."""
        logits: Tensor = self.head(self.layers(images.flatten(1)))
        return logits
