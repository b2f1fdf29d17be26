"""Monarch matrices in place of a Mixer's two layers, and in shallow networks on pixels (Hayase & Karakida 2024, 3.3).

Their networks are in ``models/monarch.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mixersweep.budget import Architecture, Request, Structure
from mixersweep.families.base import Family, FamilyLook, ImageFacts
from mixersweep.families.mixers import MixerFamily
from mixersweep.kinds import Auto


@dataclass(frozen=True, kw_only=True)
class Monarch(MixerFamily):
    """Blocks x + act(L R LN(x)) of Monarch matrices (eq 12): a Mixer block with one skip and one LN around both."""

    name: Literal["monarch"]
    tied: bool
    inner_activation: bool
    hidden: ClassVar[bool] = False
    norms_per_block: ClassVar[int] = 1
    token_expansion: ClassVar[Auto] = "auto"
    channel_expansion: ClassVar[Auto] = "auto"
    network = "mixersweep.models.monarch:MonarchNetwork"
    look = FamilyLook("gold", "P", "long")

    def layer_activations(self, a: Architecture) -> float:
        """Its two layers have one norm, and perhaps nothing between them."""
        return super().layer_activations(a) - (a.width / 2 if self.inner_activation else a.width)


@dataclass(frozen=True, kw_only=True)
class Shallow(Family):
    """x to B_c B_2 ReLU(B_1 x) on the pixels, each B a Monarch or Kronecker product of two factors (Fig. 2d)."""

    activation: Literal["gelu", "relu"]
    bias: bool
    head: ClassVar[Literal["linear"]] = "linear"
    hidden: ClassVar[bool] = False
    layers_per_block: ClassVar[int] = 2
    norms_per_block: ClassVar[int] = 0
    tied: ClassVar[bool]
    network = "mixersweep.models.monarch:ShallowNetwork"
    has_skips = False

    @property
    def structure(self) -> Structure:
        """A Kronecker product is a Monarch matrix whose factors share their blocks (Corollary 3.4)."""
        return "kronecker" if self.tied else "block_diagonal"

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """With the pixels themselves, as a matrix."""
        rows, columns = images.channels * images.size, images.size
        request = super().request(asked, images)
        return replace(request, stem="none", tokens=rows, channels=columns, patches=rows, patch_values=0)

    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """The input of each factor, and half as much for the activations between products."""
        del recomputed
        return images.values + a.width * (a.mixing_layers + 0.5)

    def largest_layer(self, a: Architecture, images: ImageFacts) -> int:
        """All are as wide."""
        del images
        return max(a.width, a.hidden_width)

    def beside_weights(self, a: Architecture, batch_size: int, device_kind: str) -> float:
        """Nothing: the weights are matrices."""
        del a, batch_size, device_kind
        return 0.0


@dataclass(frozen=True, kw_only=True)
class ShallowMonarch(Shallow):
    """Each product of two block-diagonal factors, a matrix a block."""

    name: Literal["shallow_monarch"]
    tied: ClassVar[bool] = False
    look = FamilyLook("gold", "<", "long")


@dataclass(frozen=True, kw_only=True)
class ShallowKronecker(Shallow):
    """Each product of two factors whose blocks share one matrix."""

    name: Literal["shallow_kronecker"]
    tied: ClassVar[bool] = True
    look = FamilyLook("blue", ">", "long")
