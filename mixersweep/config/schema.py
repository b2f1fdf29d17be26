"""The schema: every setting of a run with its type, bounds and choices.

The values are in ``configs/*.yaml``; the classes here and in ``families`` only say which are allowed. Imports neither
torch nor Hydra nor pydantic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from mixersweep.families import FAMILIES
from mixersweep.families.base import Family
from mixersweep.kinds import (
    Auto,
    Count,
    Density,
    NotNegative,
    Percentage,
    Positive,
    Probability,
    Share,
    Whole,
    execution,
    input_only,
    neutral,
)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The facts about a data set, so that checking and planning need no data.

    ``native_size`` (pixels) is null for images of many sizes. ``fit`` says how an image is brought to ``image_size``:
    zero-padded, resized, or its shorter side resized to image_size / crop_share and the centre cropped. ``content`` is
    a hash that identifies an image folder (``mixersweep data prepare image_folder``), wherever its ``root`` is.
    """

    name: str
    native_size: Count | None
    image_channels: Count
    classes: Annotated[int, Ge(2)]
    train_images: Count
    test_images: Count
    mean: list[float]
    std: list[Positive]
    image_size: Count | None = input_only(None)
    patch_size: Count | None = input_only(None)
    fit: Literal["pad", "resize", "crop"] = neutral("pad")
    crop_share: Density = neutral(1.0)
    interpolation: Literal["bilinear", "bicubic"] = neutral("bilinear")
    content: str | None = neutral(None)
    root: str | None = execution(None)
    crop_padding: Whole = input_only()
    flip: bool = input_only()
    auto_augment: Literal["cifar10", "imagenet", "svhn"] = input_only("cifar10")


@dataclass(frozen=True, kw_only=True)
class Optim(ABC):
    """The settings that all optimisers share: learning-rate schedule (``training.schedule``) and regularisation."""

    trains_packs: ClassVar[bool] = False
    """Whether it can train several runs at once, as a pack (``training.packed_optimizer``)."""

    lr: Positive
    weight_decay: NotNegative
    schedule: Literal["cosine", "constant", "step"]
    warmup_epochs: NotNegative
    warmup_lr: NotNegative = neutral(0.0)
    min_lr: NotNegative = neutral(0.0)
    milestones: list[Count] | None = neutral(None)
    milestone_factor: Positive = neutral(0.1)
    clip_norm: Positive | None
    label_smoothing: Share

    @property
    @abstractmethod
    def state_numbers(self) -> int:
        """How many numbers it stores per parameter, besides the weight and its gradient."""


@dataclass(frozen=True, kw_only=True)
class WidthScaled(Optim):
    """Optimisers whose learning rate may depend on a layer's width (``training.width_scaling``)."""

    lr_scaling: Literal["none", "fan_in", "mup", "mup_tied"] = neutral("none")
    base_fan_in: Positive = neutral(64.0)


@dataclass(frozen=True, kw_only=True)
class Rewired(Optim):
    """Optimisers under which the connections of masked weights may move (``training.rewire``)."""

    rewire: Literal["none", "set", "rigl", "srigl"] = neutral("none")
    rewire_every: Count | Auto = neutral("auto")
    rewire_share: Density = neutral(0.3)
    rewire_until: Density | Auto = neutral("auto")

    def rewire_pace(self, steps_per_epoch: int, epochs: int) -> tuple[int, float]:
        """The steps from one rewiring to the next, and the step from which on there is none.

        With ``auto`` those of the papers: SET's after every epoch, RigL's and SRigL's every 100 steps of the first 75%.
        """
        by_epoch = self.rewire == "set"
        every = self.rewire_every if self.rewire_every != "auto" else steps_per_epoch if by_epoch else 100
        until = self.rewire_until if self.rewire_until != "auto" else 1.0 if by_epoch else 0.75
        return every, steps_per_epoch * epochs * until


@dataclass(frozen=True, kw_only=True)
class SGD(WidthScaled, Rewired):
    """Stochastic gradient descent; by default with Nesterov momentum 0.9 (Hayase & Karakida 2024, appendix C.4)."""

    name: Literal["sgd"]
    momentum: Share
    nesterov: bool
    trains_packs: ClassVar[bool] = True

    @property
    def state_numbers(self) -> int:
        """One with momentum, else zero."""
        return int(self.momentum > 0)


@dataclass(frozen=True, kw_only=True)
class AdamW(WidthScaled, Rewired):
    """AdamW, used with strong augmentation (Hayase & Karakida 2024, appendices C.1 and C.3)."""

    name: Literal["adamw"]
    beta1: Share
    beta2: Share
    eps: Positive
    trains_packs: ClassVar[bool] = True

    @property
    def state_numbers(self) -> int:
        """Two: the first and the second moment."""
        return 2


@dataclass(frozen=True, kw_only=True)
class BetaLasso(Optim):
    """SGD with an L1 penalty lambda, which sets weights below beta·lambda to zero at each step (Neyshabur 2020).

    ``conv_lambda`` is the penalty of convolutions and of the first layer, ``fc_lambda`` that of all other matrices.
    """

    name: Literal["beta_lasso"]
    beta: NotNegative
    conv_lambda: NotNegative
    fc_lambda: NotNegative

    @property
    def state_numbers(self) -> int:
        """Zero, since it has no momentum."""
        return 0


Argument = bool | int | float | str | list[float] | None


@dataclass(frozen=True, kw_only=True)
class Timm(Optim):
    """Any optimiser of timm's factory, by timm's name; ``arguments`` are passed on to its class."""

    name: Literal["timm"]
    optimizer: str
    arguments: dict[str, Argument] | None

    @property
    def state_numbers(self) -> int:
        """Two, as for most of timm's optimisers."""
        return 2


AnyOptim = SGD | AdamW | BetaLasso | Timm
OPTIMIZERS: dict[str, type[Optim]] = {"sgd": SGD, "adamw": AdamW, "beta_lasso": BetaLasso, "timm": Timm}


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The augmentation of training images, in this order; ``configs/augment/none.yaml`` explains each setting.

    ``mixup`` and ``cutmix`` are the alphas of their Beta distributions, 0 for off; where both are on, a batch gets
    CutMix with probability ``switch_probability``. ``erasing`` is the probability of random erasing per image.
    """

    random_resized_crop: Density | None = neutral(None)
    crop_padding: Whole
    flip: bool
    policy: Literal["none", "auto_augment", "rand_augment"] = neutral("none")
    auto_augment: Literal["cifar10", "imagenet", "svhn"] = neutral("cifar10")
    rand_augment: str = neutral("rand-m9-mstd0.5-inc1")
    erasing: Probability = neutral(0.0)
    mixup: NotNegative = neutral(0.0)
    cutmix: NotNegative = neutral(0.0)
    switch_probability: Probability = neutral(0.5)


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs are mirrored (W&B); ``timeout`` is how many seconds that may delay the end of a run.

    ``checkpoint`` uploads the checkpoint too, beside config and result. ``report`` uploads the figures of a sweep when
    it ends, which may delay its end by ``report_timeout`` seconds.
    """

    name: Literal["wandb", "none"]
    project: str
    entity: str | None
    timeout: NotNegative
    checkpoint: bool = False
    report: bool = True
    report_timeout: NotNegative = 60.0


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When a checkpoint is written: after each ``every`` epochs and each ``minutes`` minutes, within an epoch too.

    ``keep`` lists epochs whose checkpoints are kept for analysis.
    """

    every: Count = 1
    minutes: Positive | None = 10.0
    keep: list[Count] | None = None


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """One seed per purpose (``seeds.PURPOSES``); None derives it from ``seed``."""

    initialization: Whole | None
    structure: Whole | None
    split: Whole | None
    order: Whole | None
    augmentation: Whole | None


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one training run; ``--cfg job`` prints them, ``configs/train.yaml`` explains them."""

    model: Family
    budget: Literal["connections", "parameters", "flops"] = input_only("connections")
    count: Literal["formula", "real"] = input_only("formula")
    width: Count | Percentage | Auto = input_only()
    connections: Count | Auto = input_only()
    weights: Count | Auto = input_only("auto")
    flops: Count | Auto = input_only("auto")
    tokens: Count | Percentage | Auto = input_only()
    channels: Count | Percentage | Auto = input_only()
    density: Density | Auto = input_only()
    expansion: Positive | Auto = input_only()
    branch: Literal["tall", "wide"] = input_only()
    match: Literal["none", "mixer"] = input_only()
    depth: Count
    image_size: Count
    patch_size: Count
    data: Data
    validation: Share
    epochs: Count
    batch_size: Count
    optim: AnyOptim
    ema: Annotated[float, Gt(0), Lt(1)] | None = neutral(None)
    stochastic_depth: Share = neutral(0.0)
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = neutral("fp32")
    augment: Augment
    seed: Whole
    seeds: Seeds
    tracking: Tracking = execution()
    device: str = execution()
    threads: Count | Auto = execution()
    workers: Whole | Auto = execution("auto")
    engine: Literal["auto", "eager", "packed"] = execution("auto")
    gradient_checkpointing: bool = execution(False)
    accumulation: Count = execution(1)
    compile: bool = execution(False)
    deterministic: bool = execution(False)
    checkpoint: Checkpoints = execution(Checkpoints())
    probes: list[Literal["spectrum", "sparsity", "gradient_norm", "activation_rank"]] | None = execution(None)
    probe_every: Count = execution(5)
    runs_dir: str = execution()
    data_dir: str = execution()
    run_dir: str | None = execution()

    @property
    def patches(self) -> int:
        """The number of patches of an image (S0)."""
        return (self.image_size // self.patch_size) ** 2


VARIANTS: dict[str, Mapping[str, type]] = {"model": FAMILIES, "optim": OPTIMIZERS}
"""The config groups whose settings depend on the choice, with a class for each choice."""
