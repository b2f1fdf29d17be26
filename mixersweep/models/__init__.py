"""The registry: which network a family's settings build."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixersweep.budget import Architecture
from mixersweep.config import Config, MixerFamily, MLPFamily
from mixersweep.config.families import SFC, GolubevaMLP, GolubevaResNet18, Monarch, Shallow
from mixersweep.layers import SparseMap
from mixersweep.models.golubeva import GolubevaMLPNetwork, GolubevaResNet18Network
from mixersweep.models.mixer import MixerNetwork
from mixersweep.models.mlp import MLPNetwork
from mixersweep.models.monarch import MonarchNetwork, ShallowNetwork
from mixersweep.models.parts import ImageFacts, StructureSeed
from mixersweep.models.s_fc import SFCNetwork
from mixersweep.seeds import derive, seed_of

NETWORKS: dict[type, Any] = {
    MixerFamily: MixerNetwork,
    Monarch: MonarchNetwork,
    Shallow: ShallowNetwork,
    MLPFamily: MLPNetwork,
    GolubevaMLP: GolubevaMLPNetwork,
    GolubevaResNet18: GolubevaResNet18Network,
    SFC: SFCNetwork,
}
"""A family takes the network of its settings' class, or of the nearest class that this derives from."""


def build(config: Config, architecture: Architecture) -> nn.Module:
    """The network of a run on the CPU in float32, with its structure and weights drawn from the run's seeds."""
    network_class = next(NETWORKS[family] for family in type(config.model).__mro__ if family in NETWORKS)
    images = ImageFacts(config.data.image_channels, config.patch_size, config.data.classes)
    structure = StructureSeed(seed_of(config, "structure"))
    network: nn.Module = network_class(config.model, architecture, images, structure)
    initialize(network, seed_of(config, "initialization"))
    return network


def initialize(network: nn.Module, seed: int) -> None:
    """Draw all weights, each layer from a generator of its own name, so that no layer depends on another's draws."""
    for name, layer in network.named_modules():
        if isinstance(layer, SparseMap):
            layer.initialize(torch.Generator().manual_seed(derive(seed, name)))
