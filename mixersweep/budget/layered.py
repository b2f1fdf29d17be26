"""Sizes of networks given as a list of weight tensors, each dense or thinned by water-filling.

Golubeva, Neyshabur & Gur-Ari (2021) widen a dense network at a fixed number of weights: weights are removed from its
largest tensor until that equals the next largest, then from both equally, and so on. Small tensors stay dense. Biases
and norms are dense and not counted. S-FC (Neyshabur 2020) starts dense and loses weights only in training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from mixersweep.budget.terms import Architecture, Request
from mixersweep.errors import UserError


class Layer(NamedTuple):
    """One weight tensor, (outputs, inputs) when dense; a convolution is applied at ``places`` positions."""

    outputs: int
    inputs: int
    places: int = 1
    part: Literal["mixing", "skip", "head"] = "mixing"
    bias: bool = False
    norm: bool = False

    @property
    def size(self) -> int:
        """The number of weights when dense."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Layered(ABC):
    """A kind of network: its layers at each width, and its number of weights, the same at every width."""

    image_channels: int
    image_size: int
    classes: int
    name: ClassVar[str]
    setting: ClassVar[str]
    """The setting that fixes how many weights it has."""
    depth: ClassVar[int]

    @property
    @abstractmethod
    def narrowest(self) -> int:
        """The width for ``auto``: the smallest that holds all its weights, where it is dense."""

    @abstractmethod
    def layers(self, width: int) -> list[Layer]:
        """Its weight tensors at a width, from the image to the classes."""

    def total(self) -> int:
        """The number of weights that it has at every width."""
        return sum(layer.size for layer in self.layers(self.narrowest))

    def kept(self, width: int) -> list[int]:
        """The number of nonzero weights of each layer at a width."""
        return water_filling([layer.size for layer in self.layers(width)], self.total())

    def check(self, width: int) -> None:
        """Raise ``UserError`` for a width that is too small to hold its weights."""
        if width < self.narrowest:
            raise UserError(
                f"width={width}: too narrow for the {self.total()} weights of {self.setting}; "
                f"the narrowest that holds them: {self.narrowest}"
            )


def water_filling(sizes: Sequence[int], total: int) -> list[int]:
    """Share ``total`` weights among tensors: each gets min(size, level), with one level for all.

    Where the level is not a whole number, the first of the tensors above it get one weight more.
    """
    assert 0 <= total <= sum(sizes), (sizes, total)
    below = 0  # of the tensors that stay dense, smallest first
    ordered = sorted(sizes)
    for dense, size in enumerate(ordered):
        cut = len(ordered) - dense
        if below + size * cut > total:
            level, more = divmod(total - below, cut)
            kept = []
            for tensor in sizes:
                extra = tensor > level and more > 0
                more -= extra
                kept.append(min(tensor, level + extra))
            return kept
        below += size
    return list(sizes)


def solve_layered(request: Request, network: Layered) -> Architecture:
    """Solve a request for all sizes; ``connections`` is the rounded mean of nonzeros over all tensors.

    Raises ``UserError`` for a width that cannot hold the weights, and for settings of other families.
    """
    width = network.narrowest if request.width is None else request.width
    for name, share in request.shares.items():
        if name != "width":
            raise UserError(f"{name}={float(100 * share):g}%: {network.name} has no setting {name}; leave {name}=auto")
        width = round(share * network.narrowest)
    network.check(width)
    layers = network.layers(width)
    sizes = [layer.size for layer in layers]
    total = network.total()
    if total < len(layers):
        raise UserError(f"{network.setting}={total}: a weight for each of the {len(layers)} matrices is the least")
    connections = round(total / len(layers))
    _refuse_other_settings(request, network, connections)
    kept = network.kept(width)

    def of(part: str) -> int:
        return sum(weights for weights, layer in zip(kept, layers, strict=True) if layer.part == part)

    units = sum(layer.outputs for layer in layers)
    beside = sum(layer.outputs * (layer.bias + 2 * layer.norm) for layer in layers)  # a norm's scale and shift
    return Architecture(
        width=width,
        width_target=width,
        hidden_width=max(layer.outputs for layer in layers[:-1]),
        tokens=None,
        channels=None,
        token_hidden=None,
        channel_hidden=None,
        embedding_channels=0,
        patches=request.patches,
        expansion=1.0,
        depth=network.depth,
        mixing_layers=len(layers),
        connections=connections,
        connections_target=connections,
        connections_counted=total / len(layers),
        connections_real=total / len(layers),
        weights_real=total / len(layers),
        total_connections=total,
        weights=connections,
        weights_target=None,
        density=total / sum(sizes),
        mean_fan_in=total / units,
        parameters=total + beside,
        stem_parameters=0,
        mixing_parameters=of("mixing"),
        head_parameters=of("head"),
        skip_parameters=of("skip"),
        skip_connections=of("skip"),
        readout_dimension=layers[-1].inputs,
        flops_per_image=2 * sum(weights * layer.places for weights, layer in zip(kept, layers, strict=True)),
    )


def _refuse_other_settings(request: Request, network: Layered, connections: int) -> None:
    """Raise ``UserError`` for settings of other families; ``connections`` is allowed if it equals the solved value."""
    for name in ("connections", "weights", "density", "tokens", "channels"):
        value = getattr(request, name)
        if value is not None and (name, value) != ("connections", connections):
            raise UserError(
                f"{name}={value:g}: {network.name} has as many weights as {network.setting} says "
                f"(connections={connections} a matrix), and no setting {name}; leave {name}=auto"
            )
    if request.budget != "connections":
        raise UserError(
            f"budget={request.budget}: {network.name} has as many weights as {network.setting} says at every width; "
            "leave budget=connections"
        )
    for name, value, has in (("expansion", request.expansion, 1), ("depth", request.depth, network.depth)):
        if value not in (None, has):
            raise UserError(f"{name}={value:g}: {network.name} has {name}={has} and no other")
