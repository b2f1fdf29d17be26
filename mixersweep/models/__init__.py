"""Build the network that a run's settings describe, and draw its initial weights."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import nn

from mixersweep.budget import Architecture
from mixersweep.config import Config, image_facts
from mixersweep.config.schema import Rewired, WidthScaled
from mixersweep.families.base import Family
from mixersweep.layers import SparseMap, SparseWeights
from mixersweep.models import stochastic_depth
from mixersweep.models.checkpointing import checkpointed
from mixersweep.models.parts import StructureSeed
from mixersweep.seeds import derive, seed_of

__all__ = ["build", "checkpointed", "initialize", "network_class", "stochastic_depth"]


def network_class(family: Family | type[Family]) -> Any:
    """The network class of a family, imported from the ``module:name`` in its ``network``."""
    named: Any = family.network
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name)


def build(config: Config, architecture: Architecture) -> nn.Module:
    """Build the network of a run on the CPU in float32, with structure and weights drawn from the run's seeds."""
    structure = StructureSeed(seed_of(config, "structure"))
    network: nn.Module = network_class(config.model)(config.model, architecture, image_facts(config), structure)
    initialize(network, seed_of(config, "initialization"))
    if isinstance(config.optim, Rewired) and config.optim.rewire != "none":
        for layer in network.modules():
            if isinstance(layer, SparseWeights):
                layer.make_movable()
    if isinstance(config.optim, WidthScaled) and config.optim.lr_scaling in ("mup", "mup_tied"):
        shrink_head(network, config.optim.base_fan_in)
    if config.stochastic_depth:
        stochastic_depth.attach(network, config.stochastic_depth, architecture.depth)
    return network


def initialize(network: nn.Module, seed: int) -> None:
    """Draw all weights, each layer's from a generator seeded by its name, so layers do not affect each other."""
    for name, layer in network.named_modules():
        if isinstance(layer, SparseMap):
            layer.initialize(torch.Generator().manual_seed(derive(seed, name)))


def shrink_head(network: nn.Module, base_fan_in: float) -> None:
    """Scale the head's initial weights from variance 1/fan_in to base_fan_in/fan_in² (muP, ``optim.lr_scaling=mup``).

    Yang et al., *Tensor Programs V*, 2022, Table 3. Otherwise the gradients of hidden features would be larger, the
    wider the network, than the scaled learning rates assume.
    """
    *_, head = (layer for layer in network.modules() if isinstance(layer, SparseMap))
    with torch.no_grad():
        head.weight.mul_(math.sqrt(base_fan_in * head.out_width / head.connections))
