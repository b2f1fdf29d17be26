"""The base classes of all model families: their settings, sizes, memory estimates and looks.

A family is a frozen dataclass. Its fields are the settings under ``model`` in ``configs/model/<name>.yaml``; its
methods and class attributes tell the rest of the program which sizes to solve for (``mixersweep.budget``, "the rule"),
how much memory training takes, which settings are impossible, how to draw it, and which class builds its networks.
What has no safe default is abstract, so that a family that leaves it out cannot be instantiated.

Plans and shell completion import families, so files here import torch only inside methods that build layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from mixersweep import budget
from mixersweep.budget import DEFAULT_READOUT, Architecture, Head, Request, Structure
from mixersweep.kinds import Count, Positive, neutral

Colour = Literal["blue", "orange", "green", "pink", "sky", "gold", "grey"]
Dash = Literal["solid", "long", "dots"]
Marker = Literal["o", "s", "^", "D", "v", "P", "<", ">", "X", "d", "p", "h", "H", "*"]
"""The markers that ``figures.palette`` can draw."""


class FamilyLook(NamedTuple):
    """How a family's line looks in every figure: its palette colour, matplotlib marker and dash pattern.

    Families differ in marker or dash as well as colour, so that figures can be read without colours.
    """

    colour: Colour
    marker: Marker
    dash: Dash


@dataclass(frozen=True)
class ImageFacts:
    """The facts about images that a family and its network need; sizes are in pixels."""

    channels: int
    size: int
    patch_size: int
    classes: int

    @property
    def values(self) -> int:
        """The number of values in an image, over all channels."""
        return self.channels * self.size**2

    @property
    def patch_values(self) -> int:
        """The number of values in a patch, over all channels (C0)."""
        return self.channels * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """The interface of a model family; its first setting ``name`` is what ``model=<name>`` selects."""

    if TYPE_CHECKING:  # a setting in some families, a constant in others

        @property
        def name(self) -> str: ...
        @property
        def head(self) -> Head: ...
        @property
        def hidden(self) -> bool: ...
        @property
        def bias(self) -> bool: ...
        @property
        def layers_per_block(self) -> int: ...
        @property
        def norms_per_block(self) -> int: ...

    # --- the network and its sizes ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def network(self) -> str:
        """The class that builds its networks, as ``module:Class``; it is imported only when a network is built."""

    @property
    @abstractmethod
    def structure(self) -> Structure:
        """The sparsity structure of its effective weight matrices."""

    @property
    @abstractmethod
    def has_skips(self) -> bool:
        """Whether its network is a sequence of residual blocks, as stochastic depth and gradient checkpointing need."""

    def with_file_hashes(self, sha256_of: Callable[[Path, str], str]) -> Self:
        """Add the sha256 of each file that the settings name; by default they name none.

        ``sha256_of`` takes a path and the setting that names it.
        """
        del sha256_of
        return self

    def check(self, depth: int) -> None:
        """Raise ``UserError`` for settings that are impossible at this depth; by default all are possible."""
        del depth

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Complete the sizes that were asked for with those that the family fixes."""
        del images
        return replace(
            asked,
            structure=self.structure,
            hidden=self.hidden,
            layers_per_block=self.layers_per_block,
            norms_per_block=self.norms_per_block,
            head=self.head,
            bias=self.bias,
        )

    def solve(self, request: Request, images: ImageFacts) -> Architecture:
        """Solve a request for all sizes of the network; raises ``UserError`` where no network meets it."""
        del images
        solved = budget.solve(request)
        budget.check_readout(request, solved)
        return solved

    def warnings(self, solved: Architecture, classes: int) -> list[str]:
        """Caveats for interpreting this network's accuracy, one sentence each."""
        return budget.warnings(solved, self.structure, classes, pooled=self.head == "pool")

    can_rewire: ClassVar[bool] = False
    """Whether its weights are masked layers whose connections may move (``optim.rewire``)."""

    @classmethod
    def matrix_rank(cls, width: int, connections: int) -> int:
        """The rank that a mixing layer's effective matrix has, up to chance: by default the full one."""
        del connections
        return width

    # --- the cost of training ---------------------------------------------------------------------------------------

    @abstractmethod
    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """Estimate how many numbers per image the forward pass keeps for the backward pass.

        For each layer these are its input, plain and normalised, and the values before and after each activation
        function. ``recomputed``: with gradient checkpointing, which computes blocks again in the backward pass.
        """

    @abstractmethod
    def largest_layer(self, a: Architecture, images: ImageFacts) -> int:
        """The number of activations per image in its largest layer."""

    @abstractmethod
    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """Bytes beside parameters and activations: the indices of sparse weights, and dense matrices made from them."""

    def alone_for(self) -> str | None:
        """The setting (``key=value``, or its key) that keeps a run from training in a pack with others, or None."""
        return None

    # --- how it is shown --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def look(self) -> FamilyLook:
        """How its lines look in figures."""


@dataclass(frozen=True, kw_only=True)
class MixingFamily(Family):
    """Families whose mixing layers all have one width and one hidden width; by default all dense."""

    def largest_layer(self, a: Architecture, images: ImageFacts) -> int:
        """The width or that of a hidden layer, whichever is larger."""
        del images
        return max(a.width, a.hidden_width)

    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """Zero, since all weights are stored as dense matrices."""
        del a, batch_size, device_kind
        return 0.0


@dataclass(frozen=True, kw_only=True)
class BlockFamily(MixingFamily):
    """Families of residual blocks with LayerNorms between a stem and a head."""

    head: Head
    readout_dimension: Count = neutral(DEFAULT_READOUT)
    activation: Literal["gelu", "relu"]
    norm_eps: Positive
    bias: bool
    has_skips = True

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Add the number of features that the head reads to the request."""
        return replace(super().request(asked, images), readout_dimension=self.readout_dimension)

    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """Count the image, its patches and all layers; if recomputed, the inputs of all layers and one whole block."""
        layer = self.layer_activations(a)
        layers = 2 + a.mixing_layers * a.width / layer if recomputed else a.mixing_layers
        return images.values + a.patches * a.embedding_channels + layers * layer

    def layer_activations(self, a: Architecture) -> float:
        """How many numbers per image one mixing layer keeps for the backward pass."""
        return 2.0 * a.width + (2 * a.hidden_width if self.hidden else a.width)
