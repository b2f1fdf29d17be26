"""Parts that all families share: patch embedding, heads, residual branches, and seeds of random structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixersweep.budget import Architecture
from mixersweep.families.base import BlockFamily
from mixersweep.layers import Dense, Factors, GroupReadout, SparseMap, transposed, with_rows
from mixersweep.layers.pack import is_packed
from mixersweep.seeds import derive

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


@dataclass(frozen=True)
class StructureSeed:
    """The seed of all masks and permutations, each drawn by its name, so that layers do not affect each other."""

    seed: int

    def generator(self, name: str) -> torch.Generator:
        """A fresh CPU generator for the structure called ``name``."""
        return torch.Generator().manual_seed(derive(self.seed, "structure", name))


class PatchEmbedding(nn.Module):
    """Cut images into patches and map each by one matrix: (B, ch, H, W) to (patches, B, channels).

    Hayase & Karakida 2024, appendix A.1. Patches are ordered row by row, the values of a patch by (ch, row, column), as
    in a convolution with kernel and stride P.
    """

    def __init__(self, patch_size: int, patch_values: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = Dense(patch_values, channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W) to (H·W/P², B, channels)."""
        embedded: Tensor = self.projection(patches(images, self.patch_size))
        return embedded


def patches(images: Tensor, size: int) -> Tensor:
    """Cut images (B, ch, H, W) into square patches, (H·W/size², B, ch·size²)."""
    special = images.requires_grad or torch.compiler.is_compiling() or is_packed()  # torch 2.6 has no view under vmap
    if size % WORD == 0 and images.dtype == torch.float32 and images.is_cpu and images.is_contiguous() and not special:
        return _patches(images.view(torch.complex128), size, size // WORD).view(torch.float32)
    return _patches(images, size, size)


WORD = 4
"""The number of float32 values that a CPU copies as one complex128: 6 times as fast for images of CIFAR's size."""


def _patches(images: Tensor, rows: int, columns: int) -> Tensor:
    batch, ch, height, width = images.shape
    down, across = height // rows, width // columns
    patches = images.reshape(batch, ch, down, rows, across, columns).permute(2, 4, 0, 1, 3, 5)
    return patches.reshape(down * across, batch, ch * rows * columns)


class Walk(Protocol):
    """The interface by which ``analyze receptive_field`` follows pixels through a network, part by part.

    A ``reach`` holds, for each unit of a layer (row by row), the set of pixels that reach it; the union of two is
    ``a | b``. A network with skips has a method ``follow(walk)``, which mirrors its ``forward``.
    """

    def embedded(self, embedding: PatchEmbedding) -> Any:
        """The reach of the embedded patches."""

    def kept(self, entries: KeptEntries, reach: Any) -> Any:
        """The reach of the entries that an MLP keeps."""

    def pixels(self) -> Any:
        """The reach of the pixels themselves: each only its own."""

    def through(self, part: nn.Module, reach: Any) -> Any:
        """The reach after all linear maps of a part, one after another."""

    def all_rows(self, reach: Any, rows: int, outputs: int) -> Any:
        """The reach after a map from ``rows`` to ``outputs`` rows that connects all of them, within each column."""

    def normalised(self, reach: Any, together: int) -> Any:
        """The reach after a LayerNorm over each ``together`` consecutive units."""

    def convolved(self, part: nn.Module, reach: Any, side: int) -> tuple[Any, int]:
        """The reach after all convolutions of a part on ``side`` x ``side`` images, and the side of their output."""

    def see(self, layer: str, reach: Any) -> None:
        """Record the reach of a layer under its name."""


class Block(nn.Module):
    """A block with skip connections, which names its residual branches."""

    branches: tuple[str, ...]
    """The attributes of its residual branches, each an ``nn.Sequential`` whose output is added to a skip."""

    def residual(self) -> Iterator[tuple[str, nn.Sequential]]:
        """Its residual branches by name."""
        for name in self.branches:
            branch = getattr(self, name)
            assert isinstance(branch, nn.Sequential)
            yield name, branch


class Mixing(nn.Sequential):
    """The layers of a residual branch, on features in the layout (m, B) or, in a Mixer, (rows, B, columns).

    The output has the layout of the input, with ``rows`` rows in a Mixer. Layers that are appended later, such as
    ``DropPath``, act on that output.
    """

    def __init__(self, *layers: nn.Module, rows: int) -> None:
        super().__init__(*layers)
        self.rows, self.own = rows, len(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers; the output is contiguous, in the layout of the input."""
        layers, had_table = list(self), x.dim() == 3
        has_table = had_table
        for layer in layers[: self.own]:
            if not isinstance(layer, SparseMap | Factors):
                x = layer(x)
                continue
            if has_table != layer.takes_rbc:
                x = _batch_inside(x) if layer.takes_rbc else x.transpose(1, 2)
                has_table = layer.takes_rbc
            x = layer(x, features_first=True)
        if had_table and not has_table:
            x = _batch_inside(x, self.rows).contiguous()
        elif had_table:
            x = with_rows(x, self.rows)
            if x.stride(2) != 1:
                x = transposed(x.flatten(0, 1).t()).view(x.shape)
        for layer in layers[self.own :]:
            x = layer(x)
        return x


def _batch_inside(x: Tensor, rows: int = 1) -> Tensor:
    """Change the layout from (m, B) or (rows, columns, B) to (rows, B, columns), as a view if possible."""
    return x.reshape(rows, -1, x.shape[-1]).transpose(1, 2)


def readout(
    settings: BlockFamily, architecture: Architecture, width: int, classes: int, structure: StructureSeed
) -> Dense | GroupReadout:
    """Build the head of a network of ``width`` features: on groups of them, on all, or on their means."""
    if settings.head in ("groups", "signed_groups"):
        generator, signed = structure.generator("head.groups"), settings.head == "signed_groups"
        return GroupReadout(width, classes, settings.readout_dimension, generator, signed=signed)
    assert architecture.readout_dimension is not None
    return Dense(architecture.readout_dimension, classes)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batch and all pixels, if any: (B, channels) or (B, channels, H, W).

    A batch with a single value per channel has no variance: it is normalised by the running statistics.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() in (2, 4), input.shape

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        if self.training and x.numel() == x.shape[1]:
            running = (self.running_mean, self.running_var)
            return nn.functional.batch_norm(x, *running, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(x)


class KeptEntries(nn.Module):
    """Select the m entries of a (patches, channels) embedding that an MLP of width m keeps, and pool them again.

    channels = ceil(m / patches). If patches · channels exceeds m, every patch keeps floor(m / patches) of its entries
    or one more; which patches keep one more, and which entries are dropped, is random.
    """

    kept: Tensor
    position: Tensor
    patches_of_channel: Tensor

    def __init__(self, patches: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.patches, self.width, self.channels = patches, width, -(-width // patches)
        fewer, more = divmod(width, patches)
        keep = torch.ones(patches, self.channels, dtype=torch.bool)
        if more:
            for patch in torch.randperm(patches, generator=generator)[more:].tolist():
                keep[patch, torch.randperm(self.channels, generator=generator)[: self.channels - fewer]] = False
        position = torch.full((patches * self.channels,), width)  # one past the end: the entry that is always zero
        kept = keep.view(-1).nonzero().squeeze(1)
        position[kept] = torch.arange(width)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("patches_of_channel", keep.sum(0).clamp(min=1).float(), persistent=False)

    def forward(self, embedded: Tensor) -> Tensor:
        """(patches, B, channels) to (width, B)."""
        flat = embedded.transpose(1, 2).flatten(0, 1)
        return flat if self.width == flat.shape[0] else flat.index_select(0, self.kept)

    def pool(self, features: Tensor) -> Tensor:
        """The mean of each channel over the patches that keep it: (width, B) to (B, channels)."""
        if self.width < self.position.numel():
            features = nn.functional.pad(features, (0, 0, 0, 1)).index_select(0, self.position)
        return features.view(self.patches, self.channels, -1).sum(0).t() / self.patches_of_channel
