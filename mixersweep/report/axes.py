"""The quantities that a figure can show on an axis: label with symbol and unit, and scale."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixersweep.errors import UserError


@dataclass(frozen=True)
class Axis:
    """An axis of a figure, for the column ``key`` of a run.

    ``log`` is the base of a logarithmic axis, 0 for a linear one. ``percent`` shows fractions in per cent, and
    ``complement`` shows 1 minus the value, as errors for accuracies.
    """

    key: str
    label: str
    log: int = 0
    percent: bool = False
    complement: bool = False

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The value of a run or of a mean of runs, in the unit of the label."""
        value = row.get(self.key)
        if value is None or isinstance(value, (str, bool, list, dict)):
            return None
        return (1 - float(value) if self.complement else float(value)) * (100 if self.percent else 1)


X_AXES = {
    axis.key: axis
    for axis in (
        Axis("width", "effective width m", 2),
        Axis("hidden_width", "hidden width, about γ·m", 2),
        Axis("density", "density p = Ω / (γ m²)", 10),
        Axis("connections", "connections Ω per layer", 2),
        Axis("weights", "mixing weights per layer", 2),
        Axis("total_connections", "connections in all layers", 10),
        Axis("parameters", "trainable parameters", 10),
        Axis("mixing_parameters", "trainable mixing weights", 10),
        Axis("mean_fan_in", "mean fan-in Ω / m", 2),
        Axis("tokens", "tokens S", 2),
        Axis("channels", "channels C", 2),
        Axis("channels_over_tokens", "channels over tokens C / S", 10),
        Axis("expansion", "expansion γ", 2),
        Axis("depth", "depth L in blocks"),
        Axis("flops_per_image", "FLOPs per image, forward", 10),
        Axis("seconds", "training time in s", 10),
        Axis("peak_memory_bytes", "peak memory in bytes", 10),
        Axis("patch_size", "patch size P in pixels", 2),
        Axis("epochs", "epochs", 10),
        Axis("batch_size", "batch size", 2),
        Axis("optim.lr", "learning rate", 10),
        Axis("optim.weight_decay", "weight decay", 10),
    )
}

Y_AXES = {
    "accuracy": Axis("test_accuracy", "test accuracy in %", percent=True),
    "error": Axis("test_accuracy", "test error in %", percent=True, complement=True),
    "best_accuracy": Axis("best_validation_test_accuracy", "test accuracy at best validation in %", percent=True),
    "ema_accuracy": Axis("ema_test_accuracy", "test accuracy of averaged weights in %", percent=True),
    "validation_accuracy": Axis("validation_accuracy", "validation accuracy in %", percent=True),
    "train_accuracy": Axis("train_accuracy", "training accuracy in %", percent=True),
    "test_loss": Axis("test_loss", "test loss in nats"),
    "validation_loss": Axis("validation_loss", "validation loss in nats"),
    "train_loss": Axis("train_loss", "training loss in nats"),
}


def x_axis(name: str) -> Axis:
    """The axis for a value of ``--x``; raises ``UserError`` for an unknown one."""
    return _chosen("--x", name, X_AXES)


def y_axis(name: str) -> Axis:
    """The axis for a value of ``--y``; raises ``UserError`` for an unknown one."""
    return _chosen("--y", name, Y_AXES)


def _chosen(option: str, name: str, known: Mapping[str, Axis]) -> Axis:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    nearest = f"the nearest is {near[0]}; " if near else ""
    raise UserError(f"{option} {name}: no such axis; {nearest}there are {', '.join(known)}")
