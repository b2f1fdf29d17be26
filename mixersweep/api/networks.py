"""Build networks as ``torch.nn.Module``, with the weights that training starts from."""

from __future__ import annotations

from torch import nn

from mixersweep import models
from mixersweep.api.settings import overrides_of, say
from mixersweep.models.block import mixing_block
from mixersweep.models.timm import start_from
from mixersweep.sweeps.expand import expand_one

__all__ = ["build", "mixing_block"]


def build(*overrides: str, **settings: object) -> nn.Module:
    """Build the network that settings mean, images (B, channels, H, W) to logits (B, classes), on the CPU in float32.

    Its structure and weights are drawn from the run's seeds, or read from ``model.pretrained``: it is the network that
    training starts from. Raises ``UserError`` for invalid settings.
    """
    (point,) = expand_one(overrides_of(overrides, settings)).points
    assert point.run is not None
    config = point.run.config
    network = models.build(config, point.run.architecture)
    for note in start_from(network, config.model):
        say(f"note: {note}")
    return network
