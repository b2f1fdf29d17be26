"""The permuted-Kronecker families: S-Mixer, MLP-Mixer, their random-permutation and untied versions.

Hayase & Karakida 2024, sections 2.2, 5.1 and 5.2 ("the paper" here); their modules are in ``models/mixer.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from mixersweep.budget import Request, Structure
from mixersweep.errors import Infeasible, UserError
from mixersweep.families.base import BlockFamily, FamilyLook, ImageFacts
from mixersweep.kinds import Auto, Positive, Whole, execution, input_only, neutral
from mixersweep.paths import expand_home


@dataclass(frozen=True, kw_only=True)
class MixerFamily(BlockFamily):
    """Permuted-Kronecker networks on S x C features (paper, sections 2.2 and 5.1)."""

    stem: Literal["patch", "resize"]
    skip_layer: Literal["auto", "always", "never"]
    layers_per_block: ClassVar[int] = 2
    norms_per_block: ClassVar[int] = 2
    network = "mixersweep.models.mixer:MixerNetwork"

    if TYPE_CHECKING:  # a setting in some Mixers, a constant in others

        @property
        def tied(self) -> bool: ...
        @property
        def token_expansion(self) -> float | Auto: ...
        @property
        def channel_expansion(self) -> float | Auto: ...

    @property
    def structure(self) -> Structure:
        """Kronecker if all blocks of a layer share one matrix (tied), else block-diagonal."""
        return "kronecker" if self.tied else "block_diagonal"

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Add the stem, the skip connection and the expansions of token and channel mixing to the request."""
        return replace(
            super().request(asked, images),
            stem=self.stem,
            skip_layer=self.skip_layer,
            token_expansion=None if self.token_expansion == "auto" else self.token_expansion,
            channel_expansion=None if self.channel_expansion == "auto" else self.channel_expansion,
        )

    def is_random(self, layer: Literal["token", "channel"], block: int) -> bool:
        """Whether this layer of this block has random permutations in place of its fixed ones."""
        del layer, block
        return False


@dataclass(frozen=True, kw_only=True)
class SMixerFamily(MixerFamily):
    """Mixers with one weight matrix a mixing layer, which all its blocks share (eq 5)."""

    hidden: ClassVar[bool] = False
    tied: ClassVar[bool] = True
    token_expansion: ClassVar[Auto] = "auto"
    channel_expansion: ClassVar[Auto] = "auto"


@dataclass(frozen=True, kw_only=True)
class MLPMixerFamily(MixerFamily):
    """Mixers whose mixing layers have a hidden layer, and matrices that all blocks share (eqs 1-4)."""

    token_expansion: Positive | Auto = input_only()
    channel_expansion: Positive | Auto = input_only()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class RandomPermutations(MixerFamily):
    """A Mixer whose fixed permutations may be random ones (section 5.2)."""

    random_layers: Literal["none", "token", "channel", "both"]
    random_blocks: Literal["all"] | list[Whole]

    def check(self, depth: int) -> None:
        """Raise ``Infeasible`` for ``random_blocks`` beyond the depth."""
        blocks = self.random_blocks
        if blocks != "all" and any(block >= depth for block in blocks):
            raise Infeasible(f"model.random_blocks={blocks}: depth={depth} has the blocks 0 to {depth - 1}")

    def is_random(self, layer: Literal["token", "channel"], block: int) -> bool:
        """Whether this layer of this block has random permutations in place of its fixed ones."""
        blocks = self.random_blocks
        return self.random_layers in (layer, "both") and (blocks == "all" or block in blocks)


@dataclass(frozen=True, kw_only=True)
class SMixer(SMixerFamily):
    """S-Mixer: one weight matrix a mixing layer (eq 5)."""

    name: Literal["s_mixer"]
    look = FamilyLook("blue", "o", "solid")


@dataclass(frozen=True, kw_only=True)
class RPSMixer(SMixerFamily, RandomPermutations):
    """Random-permutation S-Mixer (section 5.2)."""

    name: Literal["rp_s_mixer"]
    random_layers: Literal["token", "channel", "both"]
    look = FamilyLook("orange", "s", "long")


@dataclass(frozen=True, kw_only=True)
class Pretrainable(MixerFamily):
    """A Mixer that may start from the weights of a file.

    The path ``pretrained`` does not enter the experiment's fingerprint, ``pretrained_sha256`` (the content) does.
    """

    pretrained: str | None = execution(None)
    pretrained_sha256: str | None = neutral(None)

    def with_file_hashes(self, sha256_of: Callable[[Path, str], str]) -> Self:
        """Add the sha256 of the weights; raises ``UserError`` where another is set, or a sha256 without a file."""
        expected = self.pretrained_sha256
        if self.pretrained is None:
            if expected is not None:
                raise UserError(f"model.pretrained_sha256={expected}: is of model.pretrained, which is null")
            return self
        path = expand_home(self.pretrained, "model.pretrained").absolute()
        content = sha256_of(path, "model.pretrained")
        if expected not in (None, content):
            raise UserError(f"model.pretrained_sha256={expected}: the sha256 of {path} is {content}")
        return replace(self, pretrained=str(path), pretrained_sha256=content)

    def alone_for(self) -> str | None:
        """``model.pretrained`` where it is set: weights from a file cannot be loaded into a pack of runs."""
        return super().alone_for() if self.pretrained is None else "model.pretrained"


@dataclass(frozen=True, kw_only=True)
class Mixer(MLPMixerFamily, Pretrainable):
    """MLP-Mixer: mixing layers with a hidden layer (eqs 1-4)."""

    name: Literal["mixer"]
    look = FamilyLook("blue", "D", "solid")


@dataclass(frozen=True, kw_only=True)
class RPMixer(MLPMixerFamily, RandomPermutations):
    """Random-permutation MLP-Mixer (section 5.2); the permutation between its two layers is the identity."""

    name: Literal["rp_mixer"]
    random_layers: Literal["token", "channel", "both"]
    look = FamilyLook("orange", "X", "long")


@dataclass(frozen=True, kw_only=True)
class PK(RandomPermutations, Pretrainable):
    """The permuted-Kronecker family with every choice open (section 5.1); the four above are members of it."""

    name: Literal["pk"]
    hidden: bool
    tied: bool
    token_expansion: Positive | Auto = input_only()
    channel_expansion: Positive | Auto = input_only()
    look = FamilyLook("pink", "v", "solid")
