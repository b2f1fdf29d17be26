"""Learning rates that depend on the width of each layer: ``optim.lr_scaling=none|fan_in|mup``.

A layer with the effective matrix M has

    fan_in  = connections / out_width    the mean nonzeros of a row of M, as in the initial weights
    fan_out = weights / fan_in           the rows of the matrix that is trained: its units, counted once where blocks
                                         share their weights

and for a vector (a bias, the gain or shift of a norm) fan_out is its length. With n = ``optim.base_fan_in``, the fan at
which ``optim.lr`` holds as it stands, the learning rate is ``optim.lr`` times

                       first layer's weights,    hidden layers'     head's     head's
                       all biases and norms      weights            weights    biases
    none               1                         1                  1          1
    fan_in             n/fan_in (vectors: 1)     n/fan_in           n/fan_in   1
    mup, SGD           fan_out/n                 fan_out/fan_in     n/fan_in   1
    mup, AdamW         1                         n/fan_in           n/fan_in   1

``mup`` is the maximal update parametrization: Yang & Hu, *Feature Learning in Infinite-Width Neural Networks*, 2021;
Yang et al., *Tensor Programs V*, 2022 (2203.03466), Table 3, with n for the constants that it leaves open, and for
SGD's hidden layers that are not square the ratio of the fans, as in the authors' package. ``fan_in`` is its rule for
hidden layers under Adam, for every matrix and optimiser: under SGD the standard parametrization's rate must fall so,
as 1/width, for its logits to stay finite (Yang & Hu 2021).

A head of groups (``layers.readout``) reads its m units through D weights a class: m is its fan_in, of which each weight
reads m/D as one, by 1/sqrt(m/D). Its rate under ``fan_in`` is n/D, under SGD's ``mup`` n/m and under AdamW's
n/sqrt(m·D), which moves what it makes of a unit by n/m, as a dense head would.

Under ``mup`` the head starts from weights of variance n/fan_in² (``models.shrink_head``), all others from 1/fan_in as
ever: Table 3 again.

Weight decay is divided by the same factor: both optimisers multiply it by the rate, and what a step takes off a weight
stays as it was (the authors' package does so too).

What this is not:

- The papers' limit is that of dense layers whose fan-in grows. At a fixed number of connections the fan-in of an SW-MLP
  *falls* as it widens; that what matters is the number of summed inputs is carried over here, not proven, and at a
  fan-in of a few it has no law of large numbers behind it.
- Blocks that share weights are taken to push them the same way. Under SGD they do so in part: after 4 steps the
  features of an S-Mixer have moved 0.051 at S = C = 16 and 0.023 at 256 (without scaling 0.074 and 0.015), those of an
  SW-MLP 0.16 and 0.12 at widths 64 and 1,024. AdamW normalises this away (0.48 and 0.53, 0.67 and 0.57).
- The image's own sizes do not grow: the first token mixing, whose inputs are patches, counts as hidden, which differs
  from a first layer by a constant. Depth, batch size and the number of steps are not scaled at all, and
  ``optim.clip_norm`` bounds the gradients before any of this. Nor is the factor 1/sqrt(density) that
  ``model.rescale=forward`` puts before weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from torch import nn

from mixersweep.config.schema import SGD, WidthScaled
from mixersweep.layers import SparseMap

Role = Literal["first", "hidden", "head"]
NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def parameters(network: nn.Module) -> Iterator[tuple[nn.Parameter, bool, nn.Module]]:
    """Every parameter, whether it is a weight (and decays) or a bias or of a norm, and the layer that it belongs to."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, name == "weight" and not isinstance(module, NORMS), module


def scales(network: nn.Module, settings: WidthScaled) -> dict[nn.Parameter, float]:
    """The factor of the learning rate of every parameter."""
    maps = [module for module in network.modules() if isinstance(module, SparseMap)]
    roles: dict[nn.Module, Role] = {maps[0]: "first", maps[-1]: "head"}
    return {
        parameter: _scale(settings, roles.get(layer, "hidden"), parameter, layer if weight else None)
        for parameter, weight, layer in parameters(network)
    }


def _scale(settings: WidthScaled, role: Role, parameter: nn.Parameter, layer: nn.Module | None) -> float:
    """Of a weight of ``layer``, or of a vector where that is None."""
    rule, n, sgd = settings.lr_scaling, settings.base_fan_in, isinstance(settings, SGD)
    if rule == "none":
        return 1.0
    if layer is None:
        return parameter.numel() / n if rule == "mup" and sgd and role != "head" else 1.0
    assert isinstance(layer, SparseMap), layer
    fan_in = layer.connections / layer.out_width
    fan_out = layer.weights / fan_in
    if role == "head":
        read_as_one = fan_in * layer.out_width / layer.weights  # units, by a weight of a head of groups; else 1
        return n / fan_in * (read_as_one if rule == "fan_in" else 1.0 if sgd else math.sqrt(read_as_one))
    if rule == "fan_in":
        return n / fan_in
    if role == "first":
        return fan_out / n if sgd else 1.0
    return fan_out / fan_in if sgd else n / fan_in
