"""Decide from their settings, without torch, which runs can train as one pack.

A pack is one program for all its runs. They may differ in every seed and in numbers that the program takes as inputs:
learning rates and schedules, weight decay, momentum, clipping and smoothing, and the share of connections that move.
Every setting that changes a shape or an operation must be the same; so must the steps at which connections move, for
those are other programs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mixersweep.config import Config
from mixersweep.runs import Run

MAY_DIFFER = frozenset(
    (
        *("seed", "seeds.initialization", "seeds.structure", "seeds.split", "seeds.order", "seeds.augmentation"),
        *("optim.lr", "optim.weight_decay", "optim.schedule", "optim.warmup_epochs", "optim.warmup_lr", "optim.min_lr"),
        *("optim.milestones", "optim.milestone_factor", "optim.label_smoothing", "optim.clip_norm"),
        *("optim.momentum", "optim.beta1", "optim.beta2", "optim.eps", "optim.rewire_share"),
        *("tracking.name", "tracking.project", "tracking.entity", "tracking.timeout", "tracking.checkpoint"),
        *("tracking.report", "tracking.report_timeout"),
        *("probes", "probe_every", "runs_dir", "run_dir", "workers"),
    )
)
"""The settings in which runs of one pack may differ; all others must be the same."""

FOLDERS = ("imagenet", "image_folder")
"""The data sets whose images are files, read one by one."""


def why_alone(config: Config) -> str | None:
    """Which setting keeps a run out of every pack, as a message; None if the run can be packed."""
    augment, optim = config.augment, config.optim
    reasons = {
        f"optim={optim.name}": not optim.trains_packs,
        "precision=fp16": config.precision == "fp16",
        "compile=true": config.compile,
        "gradient_checkpointing=true": config.gradient_checkpointing,
        f"accumulation={config.accumulation}": config.accumulation > 1,
        f"stochastic_depth={config.stochastic_depth:g}": config.stochastic_depth > 0,
        f"augment.mixup={augment.mixup:g}": augment.mixup > 0,
        f"augment.cutmix={augment.cutmix:g}": augment.cutmix > 0,
        f"augment.erasing={augment.erasing:g}": augment.erasing > 0,
        f"augment.policy={augment.policy}": augment.policy != "none",
        "augment.random_resized_crop": augment.random_resized_crop is not None,
        f"data={config.data.name}": config.data.name in FOLDERS,
    }
    setting = next((setting for setting, holds in reasons.items() if holds), config.model.alone_for())
    return None if setting is None else f"{setting} trains by itself"


def is_packed(config: Config, device_type: str) -> bool:
    """Whether a run uses the packed engine on this type of device, even if it is alone in its pack."""
    if config.engine == "eager" or why_alone(config) is not None:
        return False
    return config.engine == "packed" or device_type == "cuda"


def program(run: Run) -> str:
    """A key that is equal for runs that can form a pack; a run that cannot be packed has a unique one."""
    if why_alone(run.config) is not None:
        return run.fingerprint
    return json.dumps(_shared_settings(run), sort_keys=True)


def why_apart(one: Run, other: Run) -> str | None:
    """Why two runs cannot be in one pack, as a message; None if they can."""
    for run in (one, other):
        if (alone := why_alone(run.config)) is not None:
            return alone
    mine, theirs = _shared_settings(one), _shared_settings(other)
    return next((f"{key}={theirs.get(key)}, not {mine.get(key)}" for key in mine if mine[key] != theirs.get(key)), None)


def _shared_settings(run: Run) -> dict[str, Any]:
    sizes = {f"architecture.{name}": value for name, value in dataclasses.asdict(run.architecture).items()}
    targets = [name for name in sizes if name.endswith("_target")]  # what was asked for, not what it is
    return {
        **_flatten(run.config, ""),
        **{name: value for name, value in sizes.items() if name not in targets},
        "optim.clip_norm": run.config.optim.clip_norm is not None,
    }


def _flatten(settings: Any, prefix: str) -> dict[str, Any]:
    """The settings that runs of a pack must share, by dotted name.

    Settings marked ``input_only`` are left out: they only determine others, which are included.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if field.metadata.get("input_only") or name in MAY_DIFFER:
            continue
        if dataclasses.is_dataclass(value):
            found |= _flatten(value, f"{name}.")
        else:
            found[name] = value
    return found
