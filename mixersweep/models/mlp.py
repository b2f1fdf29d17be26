"""MLPs on the vectorised patch embedding, with static sparse weights (SW-MLP) or dense ones.

Hayase & Karakida 2024, section 3.4 and appendix A.2.5: x + act((M o A) LN(x)) (S.16), or with two matrices a layer
x + (M2 o W2) act((M1 o W1) LN(x)) (S.17, without its outer activation, like the Mixer it is compared with). Here o is
the entrywise product. Stem and head are those of a Mixer; a block is two such layers, as many as a Mixer block has.

Between stem and head the layout is (m, B), features first, in which products with sparse matrices are fastest.
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
    """An MLP on m entries of a patch embedding, with LayerNorm and head: (B, ch, H, W) to logits (B, classes)."""

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
        """A single block, on vectors: (B, m) to (B, m)."""
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
        """Record which pixels reach stem and layers."""
        reach = walk.kept(self.entries, walk.embedded(self.embedding))
        walk.see("stem", reach)
        for number, layer in enumerate(self.layers):
            reach = cast(Any, layer).follow(walk, reach, f"layers.{number}")


class BlockAlone(nn.Module):
    """The layers of a block on vectors, images first: (B, m) to (B, m)."""

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
        """``patch_of``, int64 (m,), is the patch of the image that each of the m features comes from."""
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
        """The pixels that reach the outputs, given those that reach the inputs; also records this layer."""
        reach = reach | walk.through(self.mixing, walk.normalised(reach, len(reach)))
        walk.see(f"{name}.mixing", reach)
        return reach


def spread(units: int, patches: int) -> Tensor:
    """Assign units to patches evenly: the patch of each unit, int64 (units,)."""
    return torch.arange(units) * patches // units


def choose_storage(network: nn.Module, asked: str, device: torch.device, batch_size: int) -> str:
    """Set how each layer stores and multiplies its sparse weights; returns ``sparse``, ``dense`` or ``mixed``.

    ``auto`` takes the faster storage for each layer, or ``dense`` if there is no sparse kernel. ``mixed`` means that
    the layers of the network differ.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, SparseWeights)]
    has_kernel = device.type == "cuda" or torch.backends.mkl.is_available() or nonzeros.implementation(device) == "own"
    for layer in layers:
        sizes = layer.in_width, layer.out_width, layer.connections
        fits = has_kernel and sparse_is_faster(*sizes, batch_size, device.type)
        layer.storage = "sparse" if asked == "sparse" or (asked in ("auto", "mixed") and fits) else "dense"
    chosen = {layer.storage for layer in layers} or {"dense"}
    return "mixed" if len(chosen) > 1 else chosen.pop()
