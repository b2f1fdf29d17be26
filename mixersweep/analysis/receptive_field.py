"""``analyze receptive_field``: how many pixels can influence a unit after each layer.

Counted exactly from the sparsity patterns of the weights: a unit depends on the pixels of its input units and on those
of its skip connection. This is the explanation of Fig. 7 by Hayase & Karakida 2024 (a random permutation fixes 1/√m of
the image, and depth widens it). ``pixels`` leaves out LayerNorms, whose mean and variance make all units that are
normalised together depend on each other, in an SW-MLP all at once; ``pixels_with_norms`` counts that too.

A unit's set of pixels is a row of bits and a layer an OR over its connections, so that 65,536 units take a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import nn

from mixersweep.analysis.output import tracked
from mixersweep.errors import UserError
from mixersweep.layers import Factors, LowRank, SparseConv, SparseMap, linear_maps
from mixersweep.layers.effective import to_sparse
from mixersweep.models.parts import Block, KeptEntries, PatchEmbedding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reach = NDArray[np.uint8]
"""The pixels that each unit depends on: uint8 (units, bytes), one bit per pixel (``numpy.packbits``)."""

Row = dict[str, Any]
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.int64)
_CHUNK = 1 << 25


def through(pattern: sp.csr_array, reach: Reach) -> Reach:
    """Propagate pixel sets through a pattern (outputs, inputs): each output gets the union of its inputs' sets."""
    out = np.zeros((pattern.shape[0], reach.shape[1]), dtype=np.uint8)
    starts = pattern.indptr
    first = 0
    while first < pattern.shape[0]:  # as many rows at once as fit a bounded amount of memory
        fits = starts[first] + max(1, _CHUNK // reach.shape[1])
        last = max(first + 1, int(np.searchsorted(starts, fits, side="right")) - 1)
        inside = pattern.indices[starts[first] : starts[last]]
        begins = starts[first:last] - starts[first]
        there = np.diff(starts[first : last + 1]) > 0
        if len(inside):
            gathered = reach[inside]
            out[first:last][there] = np.bitwise_or.reduceat(gathered, begins[there], axis=0)
        first = last
    return out


def count(reach: Reach) -> NDArray[np.int64]:
    """The number of pixels of each unit, (units,)."""
    pixels: NDArray[np.int64] = _ONES[reach].sum(1)
    return pixels


def receptive_fields(network: nn.Module, image_size: int, channels: int, *, norms: bool = False) -> dict[str, Reach]:
    """The pixel sets of the units after the stem and after each mixing layer, by name.

    With ``norms``, units that a LayerNorm normalises together share their pixels.
    """
    walk = _Walk(image_size, channels, norms)
    follow: Any = getattr(network, "follow", None)
    if follow is not None:
        follow(walk)
    elif any(isinstance(module, Block) for module in network.modules()):
        raise UserError(
            f"{type(network).__name__}: has skips and no method follow, which says how pixels go through it"
        )
    else:
        walk.stack(network)
    return walk.found


class _Walk:
    """A ``models.parts.Walk`` that propagates pixel sets through a network and collects them in ``found``."""

    def __init__(self, image_size: int, channels: int, norms: bool) -> None:
        self.image_size, self.channels, self.norms = image_size, channels, norms
        self.found: dict[str, Reach] = {}

    def embedded(self, embedding: PatchEmbedding) -> Reach:
        """The sets after the patch embedding, where unit (patch, feature) depends on its patch."""
        size = embedding.patch_size
        side = self.image_size // size
        rows, columns = np.divmod(np.arange(self.image_size**2), self.image_size)
        patches = np.packbits(rows // size * side + columns // size == np.arange(side**2)[:, None], axis=1)
        return np.repeat(patches, embedding.projection.out_width, axis=0)

    def kept(self, entries: KeptEntries, reach: Reach) -> Reach:
        """Select the entries that an MLP keeps."""
        return reach if entries.width == len(reach) else reach[entries.kept.numpy()]

    def pixels(self) -> Reach:
        """The sets of the image itself, where each pixel depends on itself, in all channels."""
        return np.tile(np.packbits(np.eye(self.image_size**2, dtype=bool), axis=1), (self.channels, 1))

    def through(self, part: nn.Module, reach: Reach) -> Reach:
        """Propagate through all linear maps of a module, in order."""
        for layer in linear_maps(part):
            if isinstance(layer, LowRank):  # its second factor reads the input beside the output of the first
                first, last = layer.factors
                reach = through(to_sparse(last), np.concatenate([through(to_sparse(first), reach), reach]))
                continue
            for factor in layer.factors if isinstance(layer, Factors) else [layer]:
                reach = through(to_sparse(factor), reach)
        return reach

    def all_rows(self, reach: Reach, rows: int, outputs: int) -> Reach:
        """Propagate through dense mixing of ``rows`` rows into ``outputs`` rows, separately in each column."""
        by_column = np.bitwise_or.reduce(reach.reshape(rows, -1, reach.shape[1]), axis=0)
        return np.tile(by_column, (outputs, 1))

    def normalised(self, reach: Reach, together: int) -> Reach:
        """Propagate through a LayerNorm over groups of ``together`` consecutive units."""
        if not self.norms:
            return reach
        groups = reach.reshape(-1, together, reach.shape[1])
        return np.repeat(np.bitwise_or.reduce(groups, axis=1), together, axis=0)

    def convolved(self, part: nn.Module, reach: Reach, side: int) -> tuple[Reach, int]:
        """Propagate through all masked convolutions of a module; returns the sets and the output's side length."""
        for layer in part.modules():
            if isinstance(layer, SparseConv):
                reach, side = through(_convolution(layer, side), reach), -(-side // layer.stride)
        return reach, side

    def see(self, layer: str, reach: Reach) -> None:
        """Record the sets of a layer under its name."""
        self.found[layer] = reach

    def stack(self, network: nn.Module) -> None:
        """Propagate through a network that is a plain sequence of linear maps on the pixels."""
        reach = self.pixels()
        for name, layer in network.named_modules():
            if isinstance(layer, SparseMap) and not name.startswith("head"):
                reach = through(to_sparse(layer), reach)
                self.see(name, reach)


def _convolution(layer: SparseConv, side: int) -> sp.csr_array:
    """A masked convolution on (channels, side, side) as a sparse matrix from inputs to outputs."""
    outputs, inputs, size, _ = layer.shape
    place = layer.positions.numpy()
    out_channel, rest = np.divmod(place, inputs * size**2)
    in_channel, rest = np.divmod(rest, size**2)
    dy, dx = (offset - size // 2 for offset in np.divmod(rest, size))
    after = -(-side // layer.stride)
    y, x = np.divmod(np.arange(after**2), after)
    from_y = y[:, None] * layer.stride + dy
    from_x = x[:, None] * layer.stride + dx
    inside = (from_y >= 0) & (from_y < side) & (from_x >= 0) & (from_x < side)
    rows = (out_channel * after**2 + np.arange(after**2)[:, None])[inside]
    columns = (in_channel * side**2 + from_y * side + from_x)[inside]
    ones = np.ones(len(rows), dtype=np.int8)
    return sp.csr_array(sp.coo_array((ones, (rows, columns)), (outputs * after**2, inputs * side**2)))


def analyze(networks: Mapping[str, tuple[nn.Module, int, int]]) -> tuple[dict[str, Any], list[Row]]:
    """Build ``receptive_field.json``, a row for each layer of named networks, given with image size and channels."""
    rows: list[Row] = []
    for name, (network, image_size, channels) in tracked(list(networks.items()), "receptive_field"):
        if not any(isinstance(module, SparseMap) for module in network.modules()):
            raise UserError(f"{name}: has no linear map whose pattern could be followed")
        plain = receptive_fields(network, image_size, channels)
        normed = receptive_fields(network, image_size, channels, norms=True)
        for depth, (layer, reach) in enumerate(plain.items()):
            pixels = count(reach)
            rows.append(
                {
                    "network": name,
                    "layer": layer,
                    "after": depth,
                    "units": len(reach),
                    "pixels": float(pixels.mean()),
                    "fewest": int(pixels.min()),
                    "most": int(pixels.max()),
                    "share": float(pixels.mean()) / image_size**2,
                    "pixels_with_norms": float(count(normed[layer]).mean()),
                    "image_pixels": image_size**2,
                }
            )
    return {"layers": rows}, rows


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw the share of the image that a unit depends on, against depth."""
    from mixersweep.figures import counted, draw_panels, looks

    rows = document["layers"]
    names = list(dict.fromkeys(row["network"] for row in rows))
    look = looks([(name, name.split()[0]) for name in names])

    def panel(axes: Axes) -> None:
        counted(axes)
        for name in names:
            mine = [row for row in rows if row["network"] == name]
            x = [row["after"] for row in mine]
            axes.plot(x, [100 * row["share"] for row in mine], label=name, **look[name].line())
            low, high = ([100 * row[key] / row["image_pixels"] for row in mine] for key in ("fewest", "most"))
            axes.fill_between(x, low, high, color=look[name].colour, alpha=0.12, linewidth=0)
        axes.set_xlabel("mixing layers")
        axes.set_ylabel("pixels that reach a unit, % of the image")
        axes.set_ylim(-3, 103)
        axes.set_title("means, from the least to the most reached unit", fontsize=9, loc="left")

    return draw_panels(out, "receptive_field", "Receptive fields, LayerNorms left out", [panel], wide=6.2, high=4.2)
