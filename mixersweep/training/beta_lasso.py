"""beta-LASSO (Neyshabur 2020, 2007.13657): gradient descent with an L1 penalty that zeroes small weights.

    theta <- theta - eta·(gradient + lambda·sign(theta)),   then   theta <- theta·1[|theta| >= beta·lambda]

The threshold is not scaled by the learning rate eta. A zero weight still has a gradient and may become nonzero again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]


class BetaLassoSGD(torch.optim.Optimizer):
    """beta-LASSO for parameter groups with a ``lasso`` (lambda), plain SGD for groups where it is None.

    It has no momentum, hence no state. A step is a few kernels for all tensors of a group and never waits for the
    device.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, beta: float) -> None:
        super().__init__(groups, {"lr": lr, "beta": beta, "lasso": None, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            thetas = [theta for theta in group["params"] if theta.grad is not None]
            if not thetas:
                continue
            steps: Tensors = [theta.grad for theta in thetas]
            if group["weight_decay"]:
                steps = torch._foreach_add(steps, thetas, alpha=group["weight_decay"])
            lasso = group["lasso"] or 0.0
            if lasso:
                penalties = torch._foreach_sign(thetas)
                torch._foreach_mul_(penalties, lasso)
                torch._foreach_add_(penalties, steps)
                steps = penalties
            torch._foreach_add_(thetas, steps, alpha=-group["lr"])
            if lasso:
                threshold = group["beta"] * lasso
                for theta in thetas:
                    theta.masked_fill_(theta.abs() < threshold, 0.0)

    def density(self) -> float:
        """The fraction of nonzero weights in all groups with a ``lasso``, be it 0; waits for the device."""
        pruned = [group["params"] for group in self.param_groups if group["lasso"] is not None]
        weights = [theta for group in pruned for theta in group]
        nonzeros = float(torch.stack([theta.count_nonzero() for theta in weights]).sum())
        return nonzeros / sum(int(theta.numel()) for theta in weights)
