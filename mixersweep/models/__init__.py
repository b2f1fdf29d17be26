"""The registry: which network a family's settings build."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mixersweep.budget import Architecture
from mixersweep.config import Config, MixerFamily, MLPFamily
from mixersweep.config.families import SFC, GolubevaMLP, GolubevaResNet18, Monarch, Shallow
from mixersweep.config.schema import WidthScaled
from mixersweep.layers import SparseMap
from mixersweep.models import stochastic_depth
from mixersweep.models.checkpointing import checkpointed
from mixersweep.models.golubeva import GolubevaMLPNetwork, GolubevaResNet18Network
from mixersweep.models.mixer import MixerNetwork
from mixersweep.models.mlp import MLPNetwork
from mixersweep.models.monarch import MonarchNetwork, ShallowNetwork
from mixersweep.models.parts import ImageFacts, StructureSeed
from mixersweep.models.s_fc import SFCNetwork
from mixersweep.seeds import derive, seed_of

__all__ = ["NETWORKS", "build", "checkpointed", "initialize", "network_class", "stochastic_depth"]

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


def network_class(family: type) -> Any:
    """The class of a family's networks, by the class of its settings."""
    return next(NETWORKS[base] for base in family.__mro__ if base in NETWORKS)


def build(config: Config, architecture: Architecture) -> nn.Module:
    """The network of a run on the CPU in float32, with its structure and weights drawn from the run's seeds."""
    images = ImageFacts(config.data.image_channels, config.patch_size, config.data.classes)
    structure = StructureSeed(seed_of(config, "structure"))
    network: nn.Module = network_class(type(config.model))(config.model, architecture, images, structure)
    initialize(network, seed_of(config, "initialization"))
    if isinstance(config.optim, WidthScaled) and config.optim.lr_scaling in ("mup", "mup_tied"):
        shrink_head(network, config.optim.base_fan_in)
    if config.stochastic_depth:
        stochastic_depth.attach(network, config.stochastic_depth, architecture.depth)
    return network


def initialize(network: nn.Module, seed: int) -> None:
    """Draw all weights, each layer from a generator of its own name, so that no layer depends on another's draws."""
    for name, layer in network.named_modules():
        if isinstance(layer, SparseMap):
            layer.initialize(torch.Generator().manual_seed(derive(seed, name)))


def shrink_head(network: nn.Module, base_fan_in: float) -> None:
    """The variance of the head's initial weights from 1/fan-in to base_fan_in/fan-in² (muP, ``optim.lr_scaling=mup``).

    Else the gradients of hidden features would be larger the wider they are than the learning rates suppose.
    """
    *_, head = (layer for layer in network.modules() if isinstance(layer, SparseMap))
    with torch.no_grad():
        head.weight.mul_(math.sqrt(base_fan_in * head.out_width / head.connections))
