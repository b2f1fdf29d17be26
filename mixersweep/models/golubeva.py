"""Golubeva, Neyshabur & Gur-Ari 2021: networks that widen at a fixed number of weights.

Water-filling sets the number of nonzeros of each weight tensor (``budget.Layered.kept``); their positions are drawn
uniformly once and stay. Norms and biases are dense and not counted. Weights and biases start from U(-b, b) with
b = 1/sqrt(fan-in · connectivity), PyTorch's default at the effective fan-in.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.budget import Architecture
from mixersweep.families.base import ImageFacts
from mixersweep.families.golubeva import GolubevaMLP, GolubevaResNet18
from mixersweep.layers import Dense, SparseConv, SparseMap, SparseWeights, draw_mask
from mixersweep.models.parts import BatchNorm, Block, StructureSeed, Walk


class GolubevaMLPNetwork(nn.Module):
    """An MLP on all pixels with one hidden ReLU layer: (B, ch, H, W) to logits (B, classes)."""

    def __init__(
        self,
        settings: GolubevaMLP,
        architecture: Architecture,
        images: ImageFacts,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        pixels, width = architecture.patches * images.patch_values, architecture.width
        hidden, head = settings.layered(images).kept(width)
        self.hidden = _linear(pixels, width, hidden, structure, "hidden")
        self.head = _linear(width, images.classes, head, structure, "head")

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, classes)."""
        logits: Tensor = self.head(self.hidden(images.flatten(1)).relu())
        return logits


class GolubevaResNet18Network(nn.Module):
    """ResNet-18 with a 3x3 first convolution and no max-pool: (B, ch, H, W) to logits (B, classes)."""

    def __init__(
        self,
        settings: GolubevaResNet18,
        architecture: Architecture,
        images: ImageFacts,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        self.image_size = images.size
        width = architecture.width
        stages = [width * 2**stage for stage in range(4)]
        blocks = itertools.pairwise([width, *(channels for channels in stages for _ in range(2))])
        kept = iter(settings.layered(images).kept(width))  # in the order of the layers below

        def convolution(name: str, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
            positions = draw_mask(outputs, inputs * size**2, next(kept), "exact", structure.generator(name))
            kernel = SparseConv(inputs, outputs, size, positions, stride=stride)
            kernel.distribution = "uniform"
            return nn.Sequential(kernel, BatchNorm(outputs))

        self.stem = convolution("stem", images.channels, width)
        self.blocks = nn.Sequential()
        for block, (inputs, outputs) in enumerate(blocks):
            name, stride = f"blocks.{block}", 1 if inputs == outputs else 2
            first = convolution(f"{name}.first", inputs, outputs, stride=stride)
            second = convolution(f"{name}.second", outputs, outputs)
            skip = convolution(f"{name}.skip", inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()
            self.blocks.append(ResidualBlock(first, second, skip))
        self.head = _linear(stages[-1], images.classes, next(kept), structure, "head")

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, classes)."""
        x_bchw = self.blocks(self.stem(images).relu())
        logits: Tensor = self.head(x_bchw.mean((2, 3)))
        return logits

    def follow(self, walk: Walk) -> None:
        """Record which pixels reach stem and blocks; BatchNorm mixes images, not pixels."""
        reach, side = walk.convolved(self.stem, walk.pixels(), self.image_size)
        walk.see("stem", reach)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, ResidualBlock)
            first, inner = walk.convolved(block.first, reach, side)
            second, after = walk.convolved(block.second, first, inner)
            reach, side = second | walk.convolved(block.skip, reach, side)[0], after
            walk.see(f"blocks.{number}", reach)


class ResidualBlock(Block):
    """A residual block relu(skip(x) + second(relu(first(x)))), where each part is a convolution and a norm."""

    branches = ("second",)

    def __init__(self, first: nn.Module, second: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.skip = first, second, skip

    def forward(self, x_bchw: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), or to (B, outputs, H/2, W/2) where the channels double."""
        return F.relu(self.skip(x_bchw) + self.second(F.relu(self.first(x_bchw))))


def _linear(in_width: int, out_width: int, kept: int, structure: StructureSeed, name: str) -> SparseMap:
    layer: SparseMap
    if kept == in_width * out_width:
        layer = Dense(in_width, out_width)
    else:
        layer = SparseWeights(
            in_width, out_width, draw_mask(out_width, in_width, kept, "exact", structure.generator(name))
        )
    layer.distribution = "uniform"
    return layer
