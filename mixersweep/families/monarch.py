"""Monarch matrices in Mixer blocks and in shallow networks on pixels (Hayase & Karakida 2024, section 3.3).

Their modules are in ``models/monarch.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mixersweep.budget import Architecture, Request, Structure
from mixersweep.families.base import FamilyLook, ImageFacts, MixingFamily
from mixersweep.families.mixers import MixerFamily
from mixersweep.kinds import Auto


@dataclass(frozen=True, kw_only=True)
class Monarch(MixerFamily):
    """Residual blocks x + act(L R LN(x)) with a Monarch matrix L R (eq 12) in place of token and channel mixing."""

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
        """How many numbers per image a layer keeps: two layers share one norm, and the inner activation is optional."""
        return super().layer_activations(a) - (a.width / 2 if self.inner_activation else a.width)


@dataclass(frozen=True, kw_only=True)
class Shallow(MixingFamily):
    """Networks B_c B_2 act(B_1 x) on pixels x, where each B is a Monarch matrix or Kronecker product (Fig. 2d)."""

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
        """Kronecker if tied, else block-diagonal; a Kronecker product is a tied Monarch matrix (Corollary 3.4)."""
        return "kronecker" if self.tied else "block_diagonal"

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Replace patches by the pixels themselves, as a matrix (image channels x size, size)."""
        rows, columns = images.channels * images.size, images.size
        request = super().request(asked, images)
        return replace(request, stem="none", tokens=rows, channels=columns, patches=rows, patch_values=0)

    def activations(self, a: Architecture, images: ImageFacts, *, recomputed: bool) -> float:
        """Count the input of each factor, and half a width for the activation functions between products."""
        del recomputed
        return images.values + a.width * (a.mixing_layers + 0.5)


@dataclass(frozen=True, kw_only=True)
class ShallowMonarch(Shallow):
    """Shallow networks of Monarch matrices: each block of a factor has its own matrix."""

    name: Literal["shallow_monarch"]
    tied: ClassVar[bool] = False
    look = FamilyLook("gold", "<", "long")


@dataclass(frozen=True, kw_only=True)
class ShallowKronecker(Shallow):
    """Shallow networks of Kronecker products: all blocks of a factor share one matrix."""

    name: Literal["shallow_kronecker"]
    tied: ClassVar[bool] = True
    look = FamilyLook("blue", ">", "long")
