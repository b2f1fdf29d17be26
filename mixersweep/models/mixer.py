"""MLP-Mixers as permuted-Kronecker networks: S-Mixer, MLP-Mixer, their random-permutation and untied versions.

Hayase & Karakida 2024, sections 2.2, 5.1 and 5.2, appendices A.1-A.2. With features X (tokens S, channels C)
stored row by row, channel mixing is the Kronecker product I_S x V without permutation, and token mixing is
J_cᵀ (I_C x W) J_c (eqs 6-10, S.21); RP-Mixers have independent random permutations instead. A block with skip
connections and LayerNorms is

    U = skip(X) + token(LN(X)),   Y = U + channel(LN(U)),

token(x) = act(J2 (I x W) J1 x), or J2 (I x W2) act((I x W1) J1 x) where layers have a hidden layer. The first token
mixing maps the S0 patches to S tokens; its skip is then LN(W̃ X) (appendix A.2.4).

Between stem and head the layout is (S, B, C), tokens first: both mixings are then one matrix product, from the left on
(S, B·C) or from the right on (S·B, C), and nothing is copied except for random permutations.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor, nn

from mixersweep.budget import Architecture
from mixersweep.families.base import ImageFacts
from mixersweep.families.mixers import MixerFamily
from mixersweep.layers import (
    Commutation,
    Dense,
    GroupReadout,
    Permutation,
    PermutedKronecker,
    RandomPermutation,
    RowNorm,
    SharedParameter,
)
from mixersweep.models.parts import ACTIVATIONS, Block, Mixing, PatchEmbedding, StructureSeed, Walk, readout


class MixerBlock(Block):
    """A Mixer block, token mixing and channel mixing with their skips: (inputs, B, C) to (S, B, C)."""

    branches = ("token_mixing", "channel_mixing")

    def __init__(
        self,
        settings: MixerFamily,
        architecture: Architecture,
        block: int,
        inputs: int,
        *,
        skip: bool,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        tokens, channels = architecture.tokens, architecture.channels
        assert tokens is not None and channels is not None
        eps = settings.norm_eps
        self.skip = skip_layer(inputs, tokens, channels, eps) if skip else nn.Identity()
        self.token_norm = RowNorm(channels, eps=eps)
        self.token_mixing = _mixing(settings, architecture, "token", block, inputs, structure)
        self.channel_norm = RowNorm(channels, eps=eps)
        self.channel_mixing = _mixing(settings, architecture, "channel", block, channels, structure)

    def forward(self, x_tbc: Tensor) -> Tensor:
        """(inputs, B, C) to (S, B, C)."""
        u_sbc = self.skip(x_tbc) + self.token_mixing(self.token_norm(x_tbc))
        y_sbc: Tensor = u_sbc + self.channel_mixing(self.channel_norm(u_sbc))
        return y_sbc

    def follow(self, walk: Walk, reach: Any, name: str) -> Any:
        """The pixels that reach the outputs, given those that reach the inputs; also records both mixing layers."""
        channels = int(self.token_norm.normalized_shape[0])
        skipped = follow_skip(self.skip, walk, reach, channels)
        reach = skipped | walk.through(self.token_mixing, walk.normalised(reach, channels))
        walk.see(f"{name}.token_mixing", reach)
        reach = reach | walk.through(self.channel_mixing, walk.normalised(reach, channels))
        walk.see(f"{name}.channel_mixing", reach)
        return reach


class MixerNetwork(nn.Module):
    """A Mixer: patch embedding, ``depth`` blocks, LayerNorm, head; (B, ch, H, W) to logits (B, classes)."""

    block_class: type[nn.Module] = MixerBlock

    def __init__(
        self,
        settings: MixerFamily,
        architecture: Architecture,
        images: ImageFacts,
        structure: StructureSeed,
    ) -> None:
        super().__init__()
        tokens, channels = architecture.tokens, architecture.channels
        assert tokens is not None and channels is not None
        self.tokens, self.channels = tokens, channels
        self.pooled = settings.head == "pool"
        self.embedding = PatchEmbedding(images.patch_size, images.patch_values, channels)
        resized = settings.stem == "resize"
        self.resize = TokenMap(architecture.patches, tokens) if resized else nn.Identity()
        self.blocks = nn.Sequential()
        for block in range(architecture.depth):
            first = block == 0 and not resized
            inputs = architecture.patches if first else tokens
            skip = first and architecture.skip_parameters > 0
            self.blocks.append(self.block_class(settings, architecture, block, inputs, skip=skip, structure=structure))
        self.norm = RowNorm(channels, eps=settings.norm_eps)
        self.head = readout(settings, architecture, tokens * channels, images.classes, structure)

    @classmethod
    def block_alone(cls, settings: MixerFamily, architecture: Architecture, structure: StructureSeed) -> nn.Module:
        """A single block with as many input as output tokens, on vectors: (B, m) to (B, m)."""
        tokens = architecture.tokens
        assert tokens is not None
        return BlockAlone(cls.block_class(settings, architecture, 0, tokens, skip=False, structure=structure), tokens)

    def forward(self, images: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, classes)."""
        x_sbc = self.norm(self.blocks(self.resize(self.embedding(images))))
        if isinstance(self.head, GroupReadout):  # features first, whose rows it gathers as a whole
            by_class: Tensor = self.head(x_sbc.transpose(1, 2).flatten(0, 1), features_first=True)
            return by_class.t()
        logits: Tensor = self.head(x_sbc.mean(0) if self.pooled else x_sbc.transpose(0, 1).flatten(1))
        return logits

    def shared_parameters(self) -> list[SharedParameter]:
        """The norms, which all tokens share, and the maps of tokens, which all channels share."""
        norms = [module for module in self.modules() if isinstance(module, RowNorm)]
        maps = [module.map for module in self.modules() if isinstance(module, TokenMap)]
        return [
            *(SharedParameter(parameter, self.tokens, 1.0) for norm in norms for parameter in norm.parameters()),
            *(SharedParameter(each.weight, self.channels, 1.0) for each in maps),
        ]

    def follow(self, walk: Walk) -> None:
        """Record which pixels reach stem and blocks."""
        reach = walk.embedded(self.embedding)
        if isinstance(self.resize, TokenMap):
            reach = self.resize.follow(walk, reach)
        walk.see("stem", reach)
        for number, block in enumerate(self.blocks):
            reach = cast(Any, block).follow(walk, reach, f"blocks.{number}")


class BlockAlone(nn.Module):
    """A block on vectors, each the (S, C) features of an image row by row: (B, m) to (B, m)."""

    def __init__(self, block: nn.Module, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.Sequential(block)  # named as in a network, whose draws of weights go by name

    def forward(self, x: Tensor) -> Tensor:
        """(B, m) to (B, m)."""
        x_sbc = x.unflatten(1, (self.tokens, -1)).transpose(0, 1).contiguous()
        y_sbc: Tensor = self.blocks(x_sbc)
        return y_sbc.transpose(0, 1).flatten(1)


class TokenMap(nn.Module):
    """The linear map X to W̃ X, (inputs, B, C) to (tokens, B, C): the skip of a first block, or the resizing stem."""

    def __init__(self, inputs: int, tokens: int) -> None:
        super().__init__()
        self.map = Dense(inputs, tokens, bias=False)

    def forward(self, x_tbc: Tensor) -> Tensor:
        """(inputs, B, C) to (tokens, B, C)."""
        y: Tensor = self.map(x_tbc.flatten(1), features_first=True)
        return y.view(-1, *x_tbc.shape[1:])

    def follow(self, walk: Walk, reach: Any) -> Any:
        """The pixels that reach the outputs: every output token reads all input tokens, channel by channel."""
        return walk.all_rows(reach, self.map.in_width, self.map.out_width)


def skip_layer(inputs: int, tokens: int, channels: int, eps: float) -> nn.Sequential:
    """LN(W̃ X), the skip of a block that maps ``inputs`` to ``tokens`` (Hayase & Karakida 2024, appendix A.2.4)."""
    return nn.Sequential(TokenMap(inputs, tokens), RowNorm(channels, eps=eps))


def follow_skip(skip: nn.Module, walk: Walk, reach: Any, channels: int) -> Any:
    """The pixels that reach the outputs of a skip, which is an identity or a ``skip_layer``."""
    if isinstance(skip, nn.Identity):
        return reach
    assert isinstance(skip, nn.Sequential) and isinstance(skip[0], TokenMap)
    return walk.normalised(skip[0].follow(walk, reach), channels)


def _mixing(
    settings: MixerFamily,
    architecture: Architecture,
    layer: Literal["token", "channel"],
    block: int,
    inputs: int,
    structure: StructureSeed,
) -> Mixing:
    """Build a mixing layer: one permuted-Kronecker map and an activation, or two maps with the activation between."""
    tokens, channels = architecture.tokens, architecture.channels
    hidden = architecture.token_hidden if layer == "token" else architecture.channel_hidden
    assert tokens is not None and channels is not None and hidden is not None
    blocks, outputs = (channels, tokens) if layer == "token" else (tokens, channels)
    before: Permutation | None = None
    after: Permutation | None = None
    if settings.is_random(layer, block):
        name = f"blocks.{block}.{layer}_mixing"
        before = RandomPermutation(blocks * inputs, structure.generator(f"{name}.before"))
        after = RandomPermutation(blocks * outputs, structure.generator(f"{name}.after"), rows=tokens)
    elif layer == "token":
        before, after = Commutation(inputs, channels), Commutation(channels, tokens)

    def kronecker(
        sizes: tuple[int, int], before: Permutation | None = None, after: Permutation | None = None
    ) -> PermutedKronecker:
        return PermutedKronecker(blocks, *sizes, tied=settings.tied, bias=settings.bias, before=before, after=after)

    activation = ACTIVATIONS[settings.activation]()
    if settings.hidden:
        to_rows = to_blocks = None
        if isinstance(before, Commutation) or (before is not None and settings.tied):
            # in between, what is mixed stays rows: J_c and its inverse cancel
            to_rows, to_blocks = Commutation(blocks, hidden), Commutation(hidden, blocks)
        first, second = kronecker((inputs, hidden), before, to_rows), kronecker((hidden, outputs), to_blocks, after)
        return Mixing(first, activation, second, rows=tokens)
    return Mixing(kronecker((inputs, outputs), before, after), activation, rows=tokens)
