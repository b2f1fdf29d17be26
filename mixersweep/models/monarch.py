"""Networks of Monarch matrices M = J_cᵀ L J_c R, in the place of a Mixer's two layers or in shallow nets on pixels.

Hayase & Karakida 2024, section 3.3, eq 12 and Corollary 3.4; Dao et al. 2022. R has C blocks of S x S (a Mixer's token
mixing, with one matrix per channel), L has S blocks of C x C (its channel mixing, with one matrix per token). If tied,
all blocks of a factor are the same, and M is the Kronecker product of a Mixer without its inner activation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixersweep.budget import Architecture
from mixersweep.families.base import ImageFacts
from mixersweep.families.monarch import Monarch, Shallow
from mixersweep.layers import Commutation, Dense, PermutedKronecker, RowNorm
from mixersweep.models.mixer import MixerNetwork, follow_skip, skip_layer
from mixersweep.models.parts import ACTIVATIONS, Block, Mixing, StructureSeed, Walk


class MonarchBlock(Block):
    """A Monarch block skip(X) + act(L act(R LN(X))), (inputs, B, C) to (S, B, C); the inner activation is optional."""

    branches = ("mixing",)

    def __init__(
        self,
        settings: Monarch,
        architecture: Architecture,
        block: int,
        inputs: int,
        *,
        skip: bool,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        del block, structure  # nothing is random here but the weights
        tokens, channels = architecture.tokens, architecture.channels
        assert tokens is not None and channels is not None
        self.skip = skip_layer(inputs, tokens, channels, settings.norm_eps) if skip else nn.Identity()
        self.norm = RowNorm(channels, eps=settings.norm_eps)
        right, left = monarch_factors(inputs, tokens, channels, tied=settings.tied, bias=settings.bias)
        activation = ACTIVATIONS[settings.activation]()
        inner = activation if settings.inner_activation else nn.Identity()
        self.mixing = Mixing(right, inner, left, activation, rows=tokens)

    def forward(self, x_tbc: Tensor) -> Tensor:
        """(inputs, B, C) to (S, B, C)."""
        y_sbc: Tensor = self.skip(x_tbc) + self.mixing(self.norm(x_tbc))
        return y_sbc

    def follow(self, walk: Walk, reach: Any, name: str) -> Any:
        """The pixels that reach the outputs, given those that reach the inputs; also records the mixing layer."""
        channels = int(self.norm.normalized_shape[0])
        skipped = follow_skip(self.skip, walk, reach, channels)
        reach = skipped | walk.through(self.mixing, walk.normalised(reach, channels))
        walk.see(f"{name}.mixing", reach)
        return reach


class MonarchNetwork(MixerNetwork):
    """A network of Monarch blocks with the stem and head of a Mixer."""

    block_class = MonarchBlock


class ShallowNetwork(nn.Module):
    """A shallow network on pixels, B_c B_L act(... act(B_1 x)) without skips and norms.

    Hayase & Karakida 2024, Fig. 2d, which has L = 2. B_1, ..., B_L are Monarch matrices, B_c is a dense head.
    """

    def __init__(
        self,
        settings: Shallow,
        architecture: Architecture,
        images: ImageFacts,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        del structure  # nothing is random here but the weights
        tokens, channels = architecture.tokens, architecture.channels
        assert tokens is not None and channels is not None
        self.layers = nn.Sequential()
        for layer in range(architecture.depth):
            if layer:
                self.layers.append(ACTIVATIONS[settings.activation]())
            self.layers.extend(monarch_factors(tokens, tokens, channels, tied=settings.tied, bias=settings.bias))
        self.head = Dense(architecture.width, images.classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W), as a matrix of ch·H rows and W columns, to (B, classes)."""
        logits: Tensor = self.head(self.layers(images.flatten(1)))
        return logits


def monarch_factors(
    inputs: int, tokens: int, channels: int, *, tied: bool, bias: bool
) -> tuple[PermutedKronecker, PermutedKronecker]:
    """The factors (J_cᵀ R J_c, L) of a Monarch matrix, on features (tokens, channels) stored row by row.

    R has ``channels`` blocks of tokens x inputs, L has ``tokens`` blocks of channels x channels.
    """
    right = PermutedKronecker(
        channels,
        inputs,
        tokens,
        tied=tied,
        bias=bias,
        before=Commutation(inputs, channels),
        after=Commutation(channels, tokens),
    )
    return right, PermutedKronecker(tokens, channels, channels, tied=tied, bias=bias)
