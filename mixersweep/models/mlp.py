"""MLPs on the vectorised patch embedding, with static sparse weights (SW-MLP) or dense ones.

Hayase & Karakida 2024, section 3.4 and appendix A.2.5: x + act((M o A) LN(x)) (S.16), or with two matrices a layer
x + (M2 o W2) act((M1 o W1) LN(x)) (S.17, without its outer activation, as the Mixer it stands beside). Stem and head
are those of a Mixer; a block is two such layers, as many as a Mixer's.

Between stem and head the features come first, (m, B), because products with sparse matrices are fastest so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mixersweep.budget import Architecture
from mixersweep.budget.storage import sparse_is_faster
from mixersweep.families.base import ImageFacts
from mixersweep.families.mlps import MLPFamily
from mixersweep.layers import ColumnNorm, Plane, SparseWeights, nonzeros
from mixersweep.models.parts import (
    ACTIVATIONS,
    Block,
    KeptEntries,
    Mixing,
    PatchEmbedding,
    StructureSeed,
    Walk,
    readout,
)


class MLPNetwork(nn.Module):
    """Patch embedding, m of its entries, mixing layers on them, LN, head: (B, ch, H, W) to logits (B, classes)."""

    def __init__(
        self,
        settings: MLPFamily,
        architecture: Architecture,
        images: ImageFacts,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        self.pooled = settings.head == "pool"
        width = architecture.width
        self.embedding = PatchEmbedding(images.patch_size, images.patch_values, architecture.embedding_channels)
        self.entries = KeptEntries(architecture.patches, width, structure.generator("embedding.entries"))
        self.layers = nn.Sequential()
        patch_of = self.entries.kept // self.entries.channels
        for layer in range(architecture.mixing_layers):
            self.layers.append(MLPLayer(settings, architecture, f"layers.{layer}", structure, patch_of))
        self.norm = ColumnNorm(width, eps=settings.norm_eps)
        self.head = readout(settings, architecture, width, images.classes, structure)

    @classmethod
    def block_alone(cls, settings: MLPFamily, architecture: Architecture, structure: StructureSeed) -> nn.Module:
        """Its first block by itself: (B, m) to (B, m)."""
        count = architecture.mixing_layers // architecture.depth
        patch_of = spread(architecture.width, architecture.patches)
        return BlockAlone(
            MLPLayer(settings, architecture, f"layers.{layer}", structure, patch_of) for layer in range(count)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, classes)."""
        x_mb = self.norm(self.layers(self.entries(self.embedding(images))))
        logits: Tensor = self.head(self.entries.pool(x_mb) if self.pooled else x_mb.t())
        return logits

    def follow(self, walk: Walk) -> None:
        """The pixels that reach stem and layers."""
        reach = walk.kept(self.entries, walk.embedded(self.embedding))
        walk.see("stem", reach)
        for number, layer in enumerate(self.layers):
            reach = cast(Any, layer).follow(walk, reach, f"layers.{number}")


class BlockAlone(nn.Module):
    """The layers of a block on features in one vector an image: (B, m) to (B, m)."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, m) to (B, m)."""
        y_mb: Tensor = self.layers(x.t().contiguous())
        return y_mb.t()


class MLPLayer(Block):
    """One mixing layer with its skip: (m, B) to (m, B)."""

    branches = ("mixing",)

    def __init__(
        self,
        settings: MLPFamily,
        architecture: Architecture,
        name: str,
        structure: StructureSeed,
        patch_of: Tensor,
    ) -> None:
        """``patch_of`` (m,) says which patch of the image each of the m features comes from."""
        super().__init__()
        width, hidden = architecture.width, architecture.hidden_width
        self.norm = ColumnNorm(width, eps=settings.norm_eps)
        activation = ACTIVATIONS[settings.activation]()
        units = [patch_of, spread(hidden, architecture.patches), patch_of] if settings.hidden else [patch_of, patch_of]
        side = math.isqrt(architecture.patches)
        maps = [
            settings.linear_map(
                len(inputs),
                len(outputs),
                int(architecture.connections),
                structure.generator(f"{name}.{index}"),
                Plane(rows=outputs, columns=inputs, side=side),
            )
            for index, (inputs, outputs) in enumerate(itertools.pairwise(units))
        ]
        self.mixing = Mixing(maps[0], activation, *maps[1:], rows=width)

    def forward(self, x_mb: Tensor) -> Tensor:
        """(m, B) to (m, B)."""
        mixed: Tensor = x_mb + self.mixing(self.norm(x_mb))
        return mixed

    def follow(self, walk: Walk, reach: Any, name: str) -> Any:
        """The pixels that reach its outputs, of those that reach its inputs."""
        reach = reach | walk.through(self.mixing, walk.normalised(reach, len(reach)))
        walk.see(f"{name}.mixing", reach)
        return reach


def spread(units: int, patches: int) -> Tensor:
    """A patch for each unit, (units,), so that all patches have equally many, or one more."""
    return torch.arange(units) * patches // units


def choose_storage(network: nn.Module, asked: str, device: torch.device, batch_size: int) -> str:
    """Set how the sparse weights of a network are multiplied, and return it: ``sparse``, ``dense`` or ``mixed``.

    ``auto`` takes for each layer what is faster where there is a kernel for both. ``mixed`` is what that gives a
    network whose layers differ.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, SparseWeights)]
    has_kernel = device.type == "cuda" or torch.backends.mkl.is_available() or nonzeros.implementation(device) == "own"
    for layer in layers:
        sizes = layer.in_width, layer.out_width, layer.connections
        fits = has_kernel and sparse_is_faster(*sizes, batch_size, device.type)
        layer.storage = "sparse" if asked == "sparse" or (asked in ("auto", "mixed") and fits) else "dense"
    chosen = {layer.storage for layer in layers} or {"dense"}
    return "mixed" if len(chosen) > 1 else chosen.pop()
