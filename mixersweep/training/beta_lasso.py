"""beta-LASSO (Neyshabur 2020): gradient descent with an L1 penalty that sets small weights to zero.

    theta <- theta - eta·(gradient + lambda·sign(theta)),   then   theta <- theta·1[|theta| >= beta·lambda]

The threshold is not scaled by the learning rate eta. A weight that is zero has a gradient and may come back by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]


class BetaLassoSGD(torch.optim.Optimizer):
    """Groups with a ``lasso`` (lambda) are pruned, those where it is None are plain SGD; no momentum, so no state.

    A step is the same few kernels for all tensors of a group and never waits for the device.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, beta: float) -> None:
        super().__init__(groups, {"lr": lr, "beta": beta, "lasso": None, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
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
        """The share of nonzeros among the weights of pruned groups (a lasso of 0 included); waits for the device."""
        pruned = [group["params"] for group in self.param_groups if group["lasso"] is not None]
        weights = [theta for group in pruned for theta in group]
        nonzeros = float(torch.stack([theta.count_nonzero() for theta in weights]).sum())
        return nonzeros / sum(int(theta.numel()) for theta in weights)
