"""What a family of networks is: the contract that every other file here fulfils.

A family is a frozen dataclass. Its fields are its settings, as they stand in ``configs/model/<name>.yaml`` under
``model``; its methods and class attributes are all that the rest of the program asks of it: what it wants of the rule,
what memory it takes, what it cannot do, how it looks in figures, and where its network is. Whatever has no safe answer
is abstract: a family that leaves it out cannot be made, and the error names what is missing.

Plans and completion read families, so no file here imports torch but within a method that builds a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from mixersweep import budget
from mixersweep.budget import DEFAULT_READOUT, Architecture, Head, Request, Structure
from mixersweep.kinds import Count, Positive, neutral

Colour = Literal["blue", "orange", "green", "pink", "sky", "gold", "grey"]
Dash = Literal["solid", "long", "dots"]
Marker = Literal["o", "s", "^", "D", "v", "P", "<", ">", "X", "d", "p", "h", "H", "*"]
"""What ``figures.palette`` can draw."""


class FamilyLook(NamedTuple):
    """How a family's line looks in every figure: a colour of the palette, a marker of matplotlib's, and a dash.

    Marker or dash differ between families, so that figures are read without colours too.
    """

    colour: Colour
    marker: Marker
    dash: Dash


@dataclass(frozen=True)
class ImageFacts:
    """What a family and its network have to know of the images beside the network's own sizes."""

    channels: int
    size: int
    patch_size: int
    classes: int

    @property
    def values(self) -> int:
        """The numbers of an image."""
        return self.channels * self.size**2

    @property
    def patch_values(self) -> int:
        """C0: the values of a patch."""
        return self.channels * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """All that the program asks of a family; ``name`` is its first setting, as ``model=name`` spells it."""

    if TYPE_CHECKING:  # a setting of some families, and of others the same in all their networks

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

    # --- its network and what the rule makes of it ------------------------------------------------------------------

    @property
    @abstractmethod
    def network(self) -> str:
        """The class of its networks, ``module:Class``, which is imported when one is built."""

    @property
    @abstractmethod
    def structure(self) -> Structure:
        """How its effective weight matrices are sparse."""

    @property
    @abstractmethod
    def has_skips(self) -> bool:
        """Whether its network is a sequence of blocks with skips, whose branches can be dropped or computed again."""

    def check(self, depth: int) -> None:
        """Raise ``UserError`` for settings that no network of this depth can have; by default there are none."""
        del depth

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """What is asked of the rule, completed by what the family says of itself."""
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
        """The network that the rule gives for a request; raises ``UserError`` where there is none."""
        del images
        solved = budget.solve(request)
        budget.check_readout(request, solved)
        return solved

    def warnings(self, solved: Architecture, classes: int) -> list[str]:
        """What a reader of this network's accuracy has to know, one sentence each."""
        return budget.warnings(solved, self.structure, classes, pooled=self.head == "pool")

    # --- what training it takes -------------------------------------------------------------------------------------

    @abstractmethod
    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """Numbers of an image that the forward pass keeps for the backward pass: of each layer its input, plain and
        normalised, and what is before and behind each activation. ``recomputed``: blocks are computed again.
        """

    @abstractmethod
    def largest_layer(self, a: Architecture, images: ImageFacts) -> int:
        """Numbers of an image in its largest layer."""

    @abstractmethod
    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """Bytes beside parameters and activations: where sparse weights are, or the matrices that stand for them."""

    def alone_for(self) -> str | None:
        """The setting, as it is spelled, for which a network cannot train in a pack with others; None for none."""
        return None

    # --- how it is shown --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def look(self) -> FamilyLook:
        """Its line in figures."""


@dataclass(frozen=True, kw_only=True)
class BlockFamily(Family):
    """Families that stand between one stem and one head, as blocks with skips and LayerNorms."""

    head: Head
    readout_dimension: Count = neutral(DEFAULT_READOUT)
    activation: Literal["gelu", "relu"]
    norm_eps: Positive
    bias: bool
    has_skips = True

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """With the features that the head reads."""
        return replace(super().request(asked, images), readout_dimension=self.readout_dimension)

    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """The image, its patches and all layers; recomputed, the inputs of all layers, and one block in full."""
        layer = self.layer_activations(a)
        layers = 2 + a.mixing_layers * a.width / layer if recomputed else a.mixing_layers
        return images.values + a.patches * a.embedding_channels + layers * layer

    def layer_activations(self, a: Architecture) -> float:
        """Numbers of an image that one mixing layer keeps for the backward pass."""
        return 2.0 * a.width + (2 * a.hidden_width if self.hidden else a.width)

    def largest_layer(self, a: Architecture, images: ImageFacts) -> int:
        """The stream between the blocks, or a hidden layer."""
        del images
        return max(a.width, a.hidden_width)

    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """Nothing: the weights are matrices."""
        del a, batch_size, device_kind
        return 0.0
