"""Refuse settings that are well formed but cannot be trained, before a run directory is created."""

from __future__ import annotations

import re

from mixersweep.config import Config
from mixersweep.config.schema import Timm
from mixersweep.errors import UserError


def refuse(config: Config) -> None:
    """Raise ``UserError`` for a project name that W&B refuses, or an optimiser or arguments that timm does not have.

    Only for an optimiser of timm's are timm and torch imported.
    """
    tracking = config.tracking
    if tracking.name == "wandb" and (odd := re.search(r"[/\\#?%:]", tracking.project)):
        nearest = re.sub(r"[/\\#?%:]+", "-", tracking.project)
        why = "the user or team is tracking.entity" if odd[0] == "/" else f"the nearest is {nearest}"
        raise UserError(f"tracking.project={tracking.project}: W&B takes no {odd[0]} in the name of a project; {why}")
    if isinstance(config.optim, Timm):
        from mixersweep.layers import Dense
        from mixersweep.training.optimizer import make_optimizer

        make_optimizer(Dense(2, 2), config.optim)
