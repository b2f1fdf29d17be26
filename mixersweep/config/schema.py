"""The schema: every setting of a run with its type, bounds and choices.

The values live in ``configs/*.yaml``; the classes here and in ``families`` only say what may stand there. Imports
neither torch nor Hydra nor pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from mixersweep.config.families import FAMILIES, AnyModel
from mixersweep.config.kinds import Auto, Count, Density, NotNegative, Positive, Share, Whole, asked, execution


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
