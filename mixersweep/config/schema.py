"""The schema: every setting with its type, bounds and choices, and what a set of settings means.

The values live in ``configs/*.yaml``; the classes here only say what may stand there. ``architecture`` asks the rule
(``budget``) for the network that a ``Config`` means. Imports neither torch nor Hydra nor pydantic.

A setting that is added later is declared with ``neutral(value)``, the value that means "as before this setting
existed": it is left out of the fingerprint while it has it. ``execution()`` marks what never changes the numbers of
an experiment (where and how it runs), ``asked()`` what only led to other settings: neither is in the fingerprint.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from mixersweep import budget

Auto = Literal["auto"]
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Density = Annotated[float, Gt(0), Le(1)]

T = TypeVar("T")


def neutral(value: T) -> T:
    """A setting added after runs existed; ``value`` means what they did."""
    return field(default=value, metadata={"neutral": value})


def execution(default: Any = dataclasses.MISSING) -> Any:
    """A setting of where and how a run is executed: not part of the experiment, not in the fingerprint.

    One that is added later has a ``default``, for the runs that were frozen without it.
    """
    return field(default=default, metadata={"execution": True})


def asked(default: Any = dataclasses.MISSING) -> Any:
    """A setting that only says how others were asked for; what came of it is in the fingerprint instead.

    One that is added later has a ``default``, for the runs that were frozen without it.
    """
    return field(default=default, metadata={"asked": True})


# --- families: one class each ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Family:
    """What every family has: the shared head, activation and norms."""

    head: Literal["pool", "linear"]
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

# --- data, optimiser, augmentation, tracking ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Data:
    """The facts of a data set, so that checking and planning need no data."""

    name: str
    native_size: Count
    image_channels: Count
    classes: Annotated[int, Ge(2)]
    train_images: Count
    test_images: Count
    mean: list[float]
    std: list[Positive]
    crop_padding: Whole = asked()
    flip: bool = asked()


@dataclass(frozen=True, kw_only=True)
class Optim:
    """What every optimiser has: the learning rate's course and the regularisers beside it."""

    lr: Positive
    weight_decay: NotNegative
    schedule: Literal["cosine", "constant"]
    warmup_epochs: NotNegative
    clip_norm: Positive | None
    label_smoothing: Share


@dataclass(frozen=True, kw_only=True)
class SGD(Optim):
    """Stochastic gradient descent; the papers' default is Nesterov with momentum 0.9 (C.4)."""

    name: Literal["sgd"]
    momentum: Share
    nesterov: bool


@dataclass(frozen=True, kw_only=True)
class AdamW(Optim):
    """AdamW, which the papers use with strong augmentation (C.1, C.3)."""

    name: Literal["adamw"]
    beta1: Share
    beta2: Share
    eps: Positive


@dataclass(frozen=True, kw_only=True)
class BetaLasso(Optim):
    """SGD with an L1 penalty; at each step every weight below beta penalties becomes zero (Neyshabur 2020).

    ``conv_lambda`` is the penalty of convolutions and of the first layer, ``fc_lambda`` that of all other matrices.
    """

    name: Literal["beta_lasso"]
    beta: NotNegative
    conv_lambda: NotNegative
    fc_lambda: NotNegative


AnyOptim = SGD | AdamW | BetaLasso
OPTIMIZERS: dict[str, type[Optim]] = {"sgd": SGD, "adamw": AdamW, "beta_lasso": BetaLasso}


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random crops out of a zero-padded image, random horizontal flips."""

    crop_padding: Whole
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The mirror of a run; ``timeout`` is the most seconds that it may delay the end of a training run."""

    name: Literal["wandb", "none"]
    project: str
    entity: str | None
    timeout: NotNegative


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """A seed for each purpose; None derives it from ``seed``."""

    initialization: Whole | None
    structure: Whole | None
    split: Whole | None
    order: Whole | None
    augmentation: Whole | None


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run as it was asked for. ``--cfg job`` shows it, ``configs/train.yaml`` comments on it."""

    model: AnyModel
    budget: Literal["connections", "parameters"] = asked("connections")
    width: Count | Auto = asked()
    connections: Count | Auto = asked()
    weights: Count | Auto = asked("auto")
    tokens: Count | Auto = asked()
    channels: Count | Auto = asked()
    density: Density | Auto = asked()
    expansion: Positive | Auto = asked()
    branch: Literal["tall", "wide"] = asked()
    match: Literal["none", "mixer"] = asked()
    depth: Count
    image_size: Count
    patch_size: Count
    data: Data
    validation: Share
    epochs: Count
    batch_size: Count
    optim: AnyOptim
    augment: Augment
    seed: Whole
    seeds: Seeds
    tracking: Tracking = execution()
    device: str = execution()
    threads: Count | Auto = execution()
    runs_dir: str = execution()
    data_dir: str = execution()
    run_dir: str | None = execution()

    @property
    def patches(self) -> int:
        """S0: the patches of an image."""
        return (self.image_size // self.patch_size) ** 2


VARIANTS: dict[str, Mapping[str, type]] = {"model": FAMILIES, "optim": OPTIMIZERS}
"""Groups whose settings depend on the choice; the others have one class."""


def architecture(config: Config) -> budget.Architecture:
    """The network that the rule gives for this config; raises ``UserError`` where there is none."""
    return budget.solve(_request(config))


def warnings(config: Config, solved: budget.Architecture) -> list[str]:
    """What a reader of this run's accuracy has to know."""
    model = config.model
    mask = model.mask if isinstance(model, SWMLP) else "exact"
    return budget.warnings(solved, structure(model), config.data.classes, mask=mask, pooled=model.head == "pool")


def structure(model: AnyModel) -> budget.Structure:
    """How the effective weight matrices of a family are sparse."""
    if isinstance(model, LayeredFamily):
        return "layered"
    if isinstance(model, MLPFamily):
        return "sparse" if isinstance(model, SWMLP) else "dense"
    return "kronecker" if model.tied else "block_diagonal"


def _request(config: Config) -> budget.Request:
    def given(value: Any) -> Any:
        return None if value == "auto" else value

    model = config.model
    request = budget.Request(
        structure=structure(model),
        hidden=model.hidden,
        budget=config.budget,
        weights=given(config.weights),
        width=given(config.width),
        connections=given(config.connections),
        tokens=given(config.tokens),
        channels=given(config.channels),
        density=given(config.density),
        expansion=given(config.expansion),
        branch=config.branch,
        match=config.match,
        depth=config.depth,
        layers_per_block=model.layers_per_block,
        norms_per_block=model.norms_per_block,
        patches=config.patches,
        patch_values=config.data.image_channels * config.patch_size**2,
        classes=config.data.classes,
        head=model.head,
        bias=model.bias,
    )
    if isinstance(model, MixerFamily):
        request = dataclasses.replace(
            request,
            stem=model.stem,
            skip_layer=model.skip_layer,
            token_expansion=given(model.token_expansion),
            channel_expansion=given(model.channel_expansion),
        )
    if isinstance(model, LayeredFamily):
        layered = model.layered(config.data.image_channels, config.image_size, config.data.classes)
        request = dataclasses.replace(request, layered=layered)
    if isinstance(model, PrintedMixer):
        open_sizes = {name: size for name, size in model.sizes.items() if getattr(request, name) is None}
        request = dataclasses.replace(request, **open_sizes)  # type: ignore[arg-type]
    if isinstance(model, Shallow):  # the pixels themselves, as a matrix
        rows, columns = config.data.image_channels * config.image_size, config.image_size
        request = dataclasses.replace(request, stem="none", tokens=rows, channels=columns, patches=rows, patch_values=0)
    return request
