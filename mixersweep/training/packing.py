"""Which runs train as one pack: a rule over their settings, which needs no torch.

A pack is one program for all its runs. They may differ in every seed and in whatever the program reads from a table:
learning rates and their course, weight decay, momentum, clipping and smoothing. Anything that changes a shape or an
operation, they have in common.
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
        *("optim.momentum", "optim.beta1", "optim.beta2", "optim.eps"),
        *("tracking.name", "tracking.project", "tracking.entity", "tracking.timeout", "tracking.checkpoint"),
        *("tracking.report", "tracking.report_timeout"),
        *("probes", "probe_every", "runs_dir", "run_dir", "workers"),
    )
)
"""Settings that runs of one pack have each for itself; every other is the same for all."""

FOLDERS = ("imagenet", "image_folder")
"""Data sets whose images are files, which are read one by one."""


def why_alone(config: Config) -> str | None:
    """The setting that keeps a run out of every pack, and why; None where nothing does."""
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
    """Whether a run trains by the packed engine on such a device, be it alone there."""
    if config.engine == "eager" or why_alone(config) is not None:
        return False
    return config.engine == "packed" or device_type == "cuda"


def program(run: Run) -> str:
    """What the runs of a pack have in common, as text; a run that cannot be in one has its own."""
    if why_alone(run.config) is not None:
        return run.fingerprint
    return json.dumps(_common(run), sort_keys=True)


def why_apart(one: Run, other: Run) -> str | None:
    """What keeps two runs from being in one pack; None where nothing does."""
    for run in (one, other):
        if (alone := why_alone(run.config)) is not None:
            return alone
    mine, theirs = _common(one), _common(other)
    return next((f"{key}={theirs.get(key)}, not {mine.get(key)}" for key in mine if mine[key] != theirs.get(key)), None)


def _common(run: Run) -> dict[str, Any]:
    sizes = {f"architecture.{name}": value for name, value in dataclasses.asdict(run.architecture).items()}
    targets = [name for name in sizes if name.endswith("_target")]  # what was asked for, not what it is
    return {
        **_flat(run.config, ""),
        **{name: value for name, value in sizes.items() if name not in targets},
        "optim.clip_norm": run.config.optim.clip_norm is not None,
    }


def _flat(settings: Any, prefix: str) -> dict[str, Any]:
    """The settings that are common, by dotted name; those that only led to others stand in those."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if field.metadata.get("asked") or name in MAY_DIFFER:
            continue
        if dataclasses.is_dataclass(value):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found
