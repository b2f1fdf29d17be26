"""Signum: steps of one size in the direction of the sign of the momentum (Bernstein et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch


class SignumSGD(torch.optim.Optimizer):
    """w ← (1 - lr · weight_decay) · w - lr · sign(v), with v ← momentum · v + (1 - momentum) · gradient."""

    def __init__(self, groups: Any, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Change all weights that have a gradient; there is no closure to call again."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                mean = state.setdefault("momentum", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.sign(), alpha=group["lr"])
