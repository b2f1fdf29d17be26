"""Refuse settings that are well formed but cannot be trained, before a run directory is created."""

from __future__ import annotations

from mixersweep.config import Config
from mixersweep.config.schema import Timm
from mixersweep.tracking.identity import check_project


def refuse(config: Config) -> None:
    """Raise ``UserError`` for a project name that W&B refuses, or an optimiser or arguments that timm does not have.

    Only for an optimiser of timm's are timm and torch imported.
    """
    if config.tracking.name == "wandb":
        check_project(config.tracking.project, "tracking.project=")
    if isinstance(config.optim, Timm):
        from mixersweep.layers import Dense
        from mixersweep.training.optimizer import make_optimizer

        make_optimizer(Dense(2, 2), config.optim)
