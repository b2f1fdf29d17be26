"""Networks that are a list of weight tensors, each dense or with as many of its weights as water-filling leaves.

Golubeva, Neyshabur & Gur-Ari (2021) hold the number of weights of a narrow dense net fixed while it widens: weights
are removed from its largest tensor until that equals the next largest, then from both equally, and so on. Small
tensors stay dense. Biases and norms are dense and not counted. S-FC (Neyshabur 2020) is dense: what it loses, it
loses in training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from mixersweep.budget.terms import Architecture, Request
from mixersweep.errors import UserError


class Layer(NamedTuple):
    """One weight tensor: ``inputs`` weights a unit when dense, used at ``places`` of an image where it is a kernel."""

    outputs: int
    inputs: int
    places: int = 1
    part: Literal["mixing", "skip", "head"] = "mixing"
    bias: bool = False
    norm: bool = False

    @property
    def size(self) -> int:
        """Its weights when dense."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Layered(ABC):
    """A kind of network: the layers it has at a width, and the number of weights that it keeps at every width."""

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
        """The width that ``auto`` takes: the narrowest that holds its weights, where it is dense."""

    @abstractmethod
    def layers(self, width: int) -> list[Layer]:
        """Its weight tensors at a width, from the image to the classes."""

    def total(self) -> int:
        """The weights that it keeps."""
        return sum(layer.size for layer in self.layers(self.narrowest))

    def kept(self, width: int) -> list[int]:
        """How many weights each of its layers keeps at a width."""
        return water_filling([layer.size for layer in self.layers(width)], self.total())

    def check(self, width: int) -> None:
        """Refuse a width that is too small for its weights."""
        if width < self.narrowest:
            raise UserError(
                f"width={width}: too narrow for the {self.total()} weights of {self.setting}; "
                f"the narrowest that holds them: {self.narrowest}"
            )


def water_filling(sizes: Sequence[int], total: int) -> list[int]:
    """How many of the weights of each tensor stay where ``total`` do: min(size, level), exact.

    Where the level is no whole number, the first of the tensors above it keep one weight more.
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
    """The network with its width: ``connections`` is the mean of all its tensors, rounded; all are counted.

    Raises ``UserError`` for a width that does not hold its weights, and for settings that it has not.
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
    """Refuse what belongs to other families; ``connections`` may be said where they are so anyway."""
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
