"""The settings of the model families: one class each, so that a setting belongs to those that have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from mixersweep import budget
from mixersweep.budget import DEFAULT_READOUT
from mixersweep.config.kinds import Auto, Count, Positive, Whole, asked, execution, neutral


@dataclass(frozen=True, kw_only=True)
class Family:
    """What every family has: the shared head, activation and norms."""

    head: budget.Head
    readout_dimension: Count = neutral(DEFAULT_READOUT)
    activation: Literal["gelu", "relu"]
    norm_eps: Positive
    bias: bool


@dataclass(frozen=True, kw_only=True)
class MixerFamily(Family):
    """Permuted-Kronecker networks on S x C features (paper, sections 2.2 and 5.1)."""

    stem: Literal["patch", "resize"]
    skip_layer: Literal["auto", "always", "never"]
    layers_per_block: ClassVar[int] = 2
    norms_per_block: ClassVar[int] = 2

    def is_random(self, layer: Literal["token", "channel"], block: int) -> bool:
        """Whether this layer of this block has random permutations in place of its fixed ones."""
        del layer, block
        return False


@dataclass(frozen=True, kw_only=True)
class RandomPermutations(MixerFamily):
    """A Mixer whose fixed permutations may be random ones (section 5.2)."""

    random_layers: Literal["none", "token", "channel", "both"]
    random_blocks: Literal["all"] | list[Whole]

    def is_random(self, layer: Literal["token", "channel"], block: int) -> bool:
        """Whether this layer of this block has random permutations in place of its fixed ones."""
        blocks = self.random_blocks
        return self.random_layers in (layer, "both") and (blocks == "all" or block in blocks)


@dataclass(frozen=True, kw_only=True)
class SMixer(MixerFamily):
    """S-Mixer: one weight matrix a mixing layer (eq 5)."""

    name: Literal["s_mixer"]
    hidden: ClassVar[bool] = False
    tied: ClassVar[bool] = True
    token_expansion: ClassVar[Auto] = "auto"
    channel_expansion: ClassVar[Auto] = "auto"


@dataclass(frozen=True, kw_only=True)
class RPSMixer(RandomPermutations):
    """Random-permutation S-Mixer (section 5.2)."""

    name: Literal["rp_s_mixer"]
    random_layers: Literal["token", "channel", "both"]
    hidden: ClassVar[bool] = False
    tied: ClassVar[bool] = True
    token_expansion: ClassVar[Auto] = "auto"
    channel_expansion: ClassVar[Auto] = "auto"


@dataclass(frozen=True, kw_only=True)
class Pretrainable(MixerFamily):
    """A Mixer that may start from the weights of a file: where that lies is execution, what is in it the experiment."""

    pretrained: str | None = execution(None)
    pretrained_sha256: str | None = neutral(None)


@dataclass(frozen=True, kw_only=True)
class Mixer(Pretrainable):
    """MLP-Mixer: mixing layers with a hidden layer (eqs 1-4)."""

    name: Literal["mixer"]
    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class RPMixer(RandomPermutations):
    """Random-permutation MLP-Mixer (section 5.2); the permutation between its two layers is the identity."""

    name: Literal["rp_mixer"]
    random_layers: Literal["token", "channel", "both"]
    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class PK(RandomPermutations, Pretrainable):
    """The permuted-Kronecker family with every choice open (section 5.1); the four above are members of it."""

    name: Literal["pk"]
    hidden: bool
    tied: bool
    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()


@dataclass(frozen=True, kw_only=True)
class NamedMixer(Pretrainable):
    """An MLP-Mixer of a published size, which its YAML sets (Table 1; Tolstikhin et al. 2021)."""

    name: Literal["mixer_ss_8", "mixer_b16"]
    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class PrintedMixer(MixerFamily):
    """A published size where the table contradicts itself: as its totals say, or as its sizes are printed."""

    name: Literal["mixer_ss_w", "mixer_b_w"]
    as_printed: bool = asked()
    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True

    @property
    def sizes(self) -> dict[str, int | float]:
        """The one setting that the two readings differ in."""
        if self.name == "mixer_ss_w":
            return {"channels": 487 if self.as_printed else 467}
        return {"expansion": 4.57 if self.as_printed else 4.10}


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


@dataclass(frozen=True, kw_only=True)
class Shallow:
    """x to B_c B_2 ReLU(B_1 x) on the pixels, each B a Monarch or Kronecker product of two factors (Fig. 2d)."""

    name: Literal["shallow_monarch", "shallow_kronecker"]
    activation: Literal["gelu", "relu"]
    bias: bool
    head: ClassVar[Literal["linear"]] = "linear"
    hidden: ClassVar[bool] = False
    layers_per_block: ClassVar[int] = 2
    norms_per_block: ClassVar[int] = 0

    @property
    def tied(self) -> bool:
        """A Kronecker product is a Monarch matrix whose factors share their blocks (Corollary 3.4)."""
        return self.name == "shallow_kronecker"


@dataclass(frozen=True, kw_only=True)
class MLPFamily(Family):
    """Networks on vectors of m features, with a mixing layer for each of a Mixer's (section 3.4)."""

    hidden: bool
    layers_per_block: Annotated[int, Ge(1), Le(2)]

    @property
    def norms_per_block(self) -> int:
        """One before each mixing layer."""
        return self.layers_per_block


@dataclass(frozen=True, kw_only=True)
class SWMLP(MLPFamily):
    """MLP with static random sparse weights (section 3.4, appendix A.2.5)."""

    name: Literal["sw_mlp"]
    mask: Literal["exact", "bernoulli", "fixed_fan_in"]
    rescale: Literal["init", "forward", "none"]
    storage: Literal["auto", "sparse", "dense"] = execution()


@dataclass(frozen=True, kw_only=True)
class MLP(MLPFamily):
    """The dense MLP with the same connections."""

    name: Literal["mlp"]


@dataclass(frozen=True, kw_only=True)
class LayeredFamily(ABC):
    """Networks that are a list of weight tensors, each dense or with an exact random mask (Golubeva et al. 2021)."""

    hidden: ClassVar[bool] = False
    layers_per_block: ClassVar[int] = 2
    norms_per_block: ClassVar[int] = 0
    head: ClassVar[Literal["linear"]] = "linear"
    bias: ClassVar[bool] = True

    @abstractmethod
    def layered(self, image_channels: int, image_size: int, classes: int) -> budget.Layered:
        """Its layers, as the rule counts them."""


@dataclass(frozen=True, kw_only=True)
class GolubevaMLP(LayeredFamily):
    """One hidden ReLU layer (Golubeva et al., Fig. 5)."""

    name: Literal["golubeva_mlp"]
    weights_total: Count
    storage: Literal["auto", "sparse", "dense"] = execution()

    def layered(self, image_channels: int, image_size: int, classes: int) -> budget.Layered:
        """Two matrices."""
        return budget.TwoLayerMLP(image_channels, image_size, classes, self.weights_total)


@dataclass(frozen=True, kw_only=True)
class GolubevaResNet18(LayeredFamily):
    """ResNet-18 with the weights of a narrower dense one (Golubeva et al., Figs. 6 and 7)."""

    name: Literal["golubeva_resnet18"]
    base_width: Annotated[int, Ge(8), Le(64)]

    def layered(self, image_channels: int, image_size: int, classes: int) -> budget.Layered:
        """Its kernels and the head."""
        return budget.ResNet18(image_channels, image_size, classes, self.base_width)


@dataclass(frozen=True, kw_only=True)
class SFC(LayeredFamily):
    """S-FC, the dense equivalent of a shallow convolutional network, which beta-LASSO prunes (Neyshabur 2020)."""

    name: Literal["s_fc"]
    alpha: Count

    def layered(self, image_channels: int, image_size: int, classes: int) -> budget.Layered:
        """Three matrices."""
        return budget.SFC(image_channels, image_size, classes, self.alpha)


AnyMixer = PK | SMixer | RPSMixer | Mixer | RPMixer | NamedMixer | PrintedMixer | Monarch
AnyModel = AnyMixer | Shallow | SWMLP | MLP | GolubevaMLP | GolubevaResNet18 | SFC
FAMILIES: dict[str, type] = {
    "pk": PK,
    "s_mixer": SMixer,
    "rp_s_mixer": RPSMixer,
    "mixer": Mixer,
    "rp_mixer": RPMixer,
    "mixer_ss_8": NamedMixer,
    "mixer_ss_w": PrintedMixer,
    "mixer_b16": NamedMixer,
    "mixer_b_w": PrintedMixer,
    "monarch": Monarch,
    "shallow_monarch": Shallow,
    "shallow_kronecker": Shallow,
    "sw_mlp": SWMLP,
    "mlp": MLP,
    "golubeva_mlp": GolubevaMLP,
    "golubeva_resnet18": GolubevaResNet18,
    "s_fc": SFC,
}
