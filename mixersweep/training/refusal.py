"""What cannot be trained though its settings are well formed, told before there is a run directory."""

from __future__ import annotations

import re

from mixersweep.config import Config
from mixersweep.config.schema import Timm
from mixersweep.errors import UserError


def refuse(config: Config) -> None:
    """Raise ``UserError`` for a project that W&B refuses, and an optimiser that timm does not have, or not with these.

    Only timm knows which it has, so it is imported for such a run, and torch with it; for no other.
    """
    tracking = config.tracking
    if tracking.name == "wandb" and (odd := re.search(r"[/\\#?%:]", tracking.project)):
        why = "the user or team is tracking.entity" if odd[0] == "/" else f"the nearest is {_plain(tracking.project)}"
        raise UserError(f"tracking.project={tracking.project}: W&B takes no {odd[0]} in the name of a project; {why}")
    if isinstance(config.optim, Timm):
        from mixersweep.layers import Dense
        from mixersweep.training.optimizer import make_optimizer

        make_optimizer(Dense(2, 2), config.optim)


def _plain(name: str) -> str:
    return re.sub(r"[/\\#?%:]+", "-", name)
