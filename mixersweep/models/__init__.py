"""The registry: which network a family's settings build."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixersweep.budget import Architecture
from mixersweep.config import Config, MixerFamily, MLPFamily
from mixersweep.layers import SparseMap
from mixersweep.models.mixer import MixerNetwork
from mixersweep.models.mlp import MLPNetwork
from mixersweep.models.parts import StructureSeed
from mixersweep.seeds import derive, seed_of

NETWORKS: dict[type, Any] = {
    MixerFamily: MixerNetwork,
    MLPFamily: MLPNetwork,
}
"""A family takes the network of the class that its settings derive from."""


def build(config: Config, architecture: Architecture) -> nn.Module:
    """The network of a run on the CPU in float32, with its structure and weights drawn from the run's seeds."""
    network_class = next(network for family, network in NETWORKS.items() if isinstance(config.model, family))
    network: nn.Module = network_class(
        config.model,
        architecture,
        patch_size=config.patch_size,
        patch_values=config.data.image_channels * config.patch_size**2,
        classes=config.data.classes,
        structure=StructureSeed(seed_of(config, "structure")),
    )
    initialize(network, seed_of(config, "initialization"))
    return network


def initialize(network: nn.Module, seed: int) -> None:
    """Draw all weights, each layer from a generator of its own name, so that no layer depends on another's draws."""
    for name, layer in network.named_modules():
        if isinstance(layer, SparseMap):
            layer.initialize(torch.Generator().manual_seed(derive(seed, name)))
