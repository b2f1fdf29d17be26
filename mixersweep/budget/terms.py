"""The data types of the budget rule, from a ``Request`` to an ``Architecture``, and its exact arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

DEFAULT_CONNECTIONS = 2**15
TOLERANCE = Fraction(2, 100)
"""The largest relative error of integer sizes, for width and connections (or what else the budget fixes) alike."""

DEFAULT_READOUT = 64
"""The default number of groups of units that a head of groups reads."""

Structure = Literal["kronecker", "block_diagonal", "sparse", "dense", "product", "layered"]
Head = Literal["pool", "linear", "groups", "signed_groups"]


Pair = tuple[int, int]
"""A width, and the connections of a layer of that width."""


class Factored(ABC):
    """A kind of square layer made of factors, by its arithmetic (``budget.factored``)."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """What its connections are, for messages."""

    @abstractmethod
    def pairs(self, width: int, connections: int) -> Iterable[Pair]:
        """Yield the pairs near a width and a number of connections, the nearest among them."""

    def own_width(self, connections: int) -> int | None:
        """The width where none is asked for; None: that of the widest Mixer."""
        del connections
        return None


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings that a network must meet (None: free), and the facts of data and wiring that its counts depend on.

    ``shares`` give a width, tokens or channels as a fraction of those of the budget's widest Mixer, whatever the
    structure; for networks with layers of unequal sizes, a width as a multiple of the narrowest. ``factored`` is the
    arithmetic of layers that are products of factors (``structure="product"``), ``sharing`` how many
    connections of a sparse matrix have the same weight.
    """

    structure: Structure
    factored: Factored | None = None
    sharing: int = 1
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
    """The integer sizes and counts of one network: the keys of ``result.json`` that are known before training.

    ``connections`` follows the formula for square layers, ``connections_counted`` is the mean over the matrices as they
    are built, and ``connections_real`` and ``weights_real`` are that mean with the skip beside the first matrix.
    ``*_parameters`` are the trainable weights of a part; ``parameters`` are all trainable numbers, biases and norms
    included. ``readout_dimension`` is the number of features that the head reads. Sizes that a structure lacks are
    None.
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
        """The larger relative error of width and connections (or what else the budget fixes) from their targets."""
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
"""The fields that a budget may fix: target and size. A network's budget is the first whose target is not None."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a network before its parts are counted; 0 where a structure has no such size.

    ``target`` is the target of the budget, in the units of its rule, and ``counted`` what the rule counts.
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
    """Return a float as the exact decimal that it was written as: 4.1 is 41/10."""
    return Fraction(repr(number))


def scaled(factor: Fraction, size: int) -> int:
    """Return max(1, round(factor·size)); halves are rounded to even, as by Python's round."""
    return max(1, round(Fraction(factor.numerator * size, factor.denominator)))


def rounded_root(value: Fraction, degree: int) -> int:
    """Return round(value^(1/degree)) exactly: the integer n with (n - 1/2)^degree <= value < (n + 1/2)^degree."""
    guess: int = max(0, round(float(value) ** (1 / degree)))
    while guess and Fraction(2 * guess - 1, 2) ** degree > value:
        guess -= 1
    while Fraction(2 * guess + 1, 2) ** degree <= value:
        guess += 1
    return guess


def relative(achieved: int | Fraction, target: int | Fraction) -> Fraction:
    """Return the relative error |achieved / target - 1|, exactly."""
    return Fraction(abs(Fraction(achieved) / Fraction(target) - 1))
