"""What cannot be trained though its settings are well formed, told before there is a run directory."""

from __future__ import annotations

from mixersweep.config import Config
from mixersweep.config.schema import Timm


def refuse(config: Config) -> None:
    """Raise ``UserError`` for an optimiser that timm does not have, or not with these arguments.

    Only timm knows which it has, so it is imported for such a run, and torch with it; for no other.
    """
    if isinstance(config.optim, Timm):
        from mixersweep.layers import Dense
        from mixersweep.training.optimizer import make_optimizer

        make_optimizer(Dense(2, 2), config.optim)
