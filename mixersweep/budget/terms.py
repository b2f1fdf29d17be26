"""The words of the rule: what is asked for, what comes out, and the exact arithmetic between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

DEFAULT_CONNECTIONS = 2**15
TOLERANCE = Fraction(2, 100)
"""How far what integers allow may lie from what was asked, for width and connections alike."""

DEFAULT_READOUT = 64
"""Groups of units that a head of groups reads, where nothing else is said."""

Structure = Literal["kronecker", "block_diagonal", "sparse", "dense", "layered"]
Head = Literal["pool", "linear", "groups", "signed_groups"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for (None: left open), and the facts of data and wiring that the counts depend on.

    ``shares`` are a width, tokens or channels said as a share of what the widest Mixer of the budget has, whatever the
    structure; of networks with layers of unequal sizes, a width as a share of the narrowest.
    """

    structure: Structure
    budget: Literal["connections", "parameters", "flops"] = "connections"
    count: Literal["formula", "real"] = "formula"
    weights: int | None = None
    flops: int | None = None
    hidden: bool = False
    width: int | None = None
    shares: Mapping[str, Fraction] = field(default_factory=dict)
    connections: int | None = None
    tokens: int | None = None
    channels: int | None = None
    density: float | None = None
    expansion: float | None = 1.0
    token_expansion: float | None = None
    channel_expansion: float | None = None
    branch: Literal["tall", "wide"] = "tall"
    match: Literal["none", "mixer"] = "none"
    depth: int = 4
    layers_per_block: int = 2
    norms_per_block: int | None = None
    patches: int = 64
    patch_values: int = 16
    classes: int = 10
    stem: Literal["patch", "resize", "none"] = "patch"
    head: Head = "pool"
    readout_dimension: int = DEFAULT_READOUT
    skip_layer: Literal["auto", "always", "never"] = "auto"
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Integer sizes and counts of one network; the keys of ``result.json`` that are known before training.

    ``connections`` is the rule's formula for square layers, ``connections_counted`` the mean over the matrices
    that are really there, and ``connections_real``, ``weights_real`` that mean with the skip beside the first matrix
    counted too. ``*_parameters`` are trainable weights of that part; ``parameters`` is all that is
    trainable, biases and norms included. ``readout_dimension`` is how many features the head reads. Sizes that a
    structure does not have are None.
    """

    width: int
    width_target: int
    hidden_width: int
    tokens: int | None
    channels: int | None
    token_hidden: int | None
    channel_hidden: int | None
    embedding_channels: int
    patches: int
    expansion: float
    depth: int
    mixing_layers: int
    connections: int | float
    connections_target: int
    connections_counted: float
    total_connections: int
    weights: int | float
    weights_target: int | None = None
    density: float
    mean_fan_in: float
    parameters: int
    stem_parameters: int
    mixing_parameters: int
    head_parameters: int
    skip_parameters: int
    skip_connections: int
    flops_per_image: int
    readout_dimension: int | None = None
    connections_real: float | None = None
    connections_real_target: int | None = None
    weights_real: float | None = None
    weights_real_target: int | None = None
    flops_target: int | None = None

    @property
    def residual(self) -> float:
        """The larger relative distance of width and connections, or what else was the budget, from their targets."""
        has, target = next(
            (getattr(self, size), getattr(self, name))
            for name, size in TARGETS.items()
            if getattr(self, name) is not None
        )
        return float(max(abs(self.width / self.width_target - 1), abs(has / target - 1)))


TARGETS = {
    "flops_target": "flops_per_image",
    "weights_real_target": "weights_real",
    "connections_real_target": "connections_real",
    "weights_target": "weights",
    "connections_target": "connections",
}
"""What a budget fixes: the target and the size that is to meet it, the first that a network has a target for."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a network, before its parts are counted; zero where a structure has no such size.

    ``target`` is that of the budget, whatever it counts, and ``counted`` what the rule counts for it.
    """

    width: int
    width_target: int
    hidden_width: int
    tokens: int = 0
    channels: int = 0
    token_hidden: int = 0
    channel_hidden: int = 0
    expansion: float
    connections: Fraction
    connections_target: int
    target: int | None = None
    counted: Fraction = Fraction(0)


def exact(number: float) -> Fraction:
    """The decimal as it was written: 4.1 is 41/10."""
    return Fraction(repr(number))


def scaled(factor: Fraction, size: int) -> int:
    """max(1, round(factor·size)), halves to the even neighbour as Python's round."""
    return max(1, round(Fraction(factor.numerator * size, factor.denominator)))


def rounded_root(value: Fraction, degree: int) -> int:
    """round(value^(1/degree)) exactly: the integer n with (n - 1/2)^degree <= value < (n + 1/2)^degree."""
    guess: int = max(0, round(float(value) ** (1 / degree)))
    while guess and Fraction(2 * guess - 1, 2) ** degree > value:
        guess -= 1
    while Fraction(2 * guess + 1, 2) ** degree <= value:
        guess += 1
    return guess


def relative(achieved: int | Fraction, target: int | Fraction) -> Fraction:
    """|achieved / target - 1|, exact."""
    return Fraction(abs(Fraction(achieved) / Fraction(target) - 1))
