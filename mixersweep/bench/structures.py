"""Benchmarks of the mixing layers of all MLPs, one for each structure of sparsity, against dense layers.

At equal connections all structures take as many multiply-adds for each image, and so does a dense layer of the same
FLOPs, which is narrower; a dense layer of the same shape is as wide and takes more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import nn

from mixersweep.bench.harness import Case
from mixersweep.bench.layers import BATCH, DenseLayer, forward_and_backward
from mixersweep.compose import config_of
from mixersweep.config import Config
from mixersweep.families import FAMILIES
from mixersweep.families.mlps import MLP, MLPFamily
from mixersweep.families.products import ProductMLP
from mixersweep.kinds import MaskKind
from mixersweep.layers import Plane
from mixersweep.layers.product import linear
from mixersweep.models import initialize
from mixersweep.models.mlp import choose_storage, spread
from mixersweep.runs import solve

SIZES = [(1024, 2**16), (4096, 2**18)]
"""Widths and connections. A structure that has a width of its own with these connections (``width=auto``) has that."""

WIDEST_DENSE = 2**13
"""The largest width of a dense layer of the same shape; wider ones take gigabytes."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "sw_mlp": tuple(f"mask={kind}" for kind in get_args(MaskKind) if kind != "bernoulli"),
    "block_diagonal": ("permuted=true", "permuted=false"),
    "btt": ("rank=1", "rank=2"),
    "butterfly": ("factors=3", "factors=auto"),
}
"""The settings that make a family several structures. Not ``bernoulli``, which draws how many connections there are."""


def structure_cases() -> Iterator[Case]:
    """Yield each structure at each size, against dense layers of the same FLOPs and of the same shape."""
    for name, family in FAMILIES.items():
        if not issubclass(family, MLPFamily) or family is MLP:
            continue
        for setting in SETTINGS.get(name, ("",)):
            config = config_of([f"model={name}", *([f"model.{setting}"] if setting else [])])
            for width, connections in SIZES:
                layer = StructuredLayer(_sized(config, width, connections))
                yield from _against_dense(layer, name, setting)


def _sized(config: Config, width: int, connections: int) -> Config:
    """Set the connections, and the width where the structure has none of its own with them."""
    config = replace(config, connections=connections)
    if isinstance(config.model, ProductMLP) and config.model.factored.own_width(connections):
        return config
    return replace(config, width=width)


def _against_dense(layer: StructuredLayer, name: str, setting: str) -> Iterator[Case]:
    width, connections = layer.width, layer.connections
    sizes = {"model": name, "setting": setting or None, "width": width, "connections": connections, "batch_size": BATCH}
    side = round(math.sqrt(connections))
    same_flops = DenseLayer(side, BATCH, linear)
    yield Case("structure_vs_same_flops", sizes, layer, same_flops, scale=connections / side**2)
    if width <= WIDEST_DENSE:
        yield Case("structure_vs_same_shape", sizes, layer, DenseLayer(width, BATCH, linear))


@dataclass(frozen=True)
class StructuredLayer:
    """The forward and all backward products of a mixing layer of an MLP, in the layout in which it trains."""

    config: Config
    batch_size: int = BATCH

    @property
    def width(self) -> int:
        """The width of the layer."""
        return solve(self.config).architecture.width

    @property
    def connections(self) -> int:
        """The multiply-adds for each image."""
        return int(solve(self.config).architecture.connections)

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        layer = self.layer().to(device)
        choose_storage(layer, "auto", device, self.batch_size)
        x_mb = torch.randn(self.width, self.batch_size, device=device)
        return forward_and_backward(layer, x_mb, partial(layer, features_first=True))

    def layer(self) -> nn.Module:
        """Build the first mixing layer of the network, with random weights."""
        family, a = self.config.model, solve(self.config).architecture
        assert isinstance(family, MLPFamily)
        units = spread(a.width, a.patches)
        plane = Plane(rows=units, columns=units, side=math.isqrt(a.patches))
        generator = torch.Generator().manual_seed(0)
        layer = family.linear_map(a.width, a.width, int(a.connections), generator, plane)
        initialize(layer, 0)
        return layer
