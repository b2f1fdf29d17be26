"""The optimiser and the course of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from mixersweep.config.schema import SGD, AnyOptim, BetaLasso
from mixersweep.layers import SparseConv, SparseMap
from mixersweep.training.beta_lasso import BetaLassoSGD

NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def make_optimizer(network: nn.Module, settings: AnyOptim) -> torch.optim.Optimizer:
    """The optimiser over all parameters; weight decay and penalties act on weights, not on biases and norms."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = name == "weight" and not isinstance(module, NORMS)
            (decayed if weight else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if isinstance(settings, BetaLasso):
        return _beta_lasso(network, settings, decayed, free)
    if isinstance(settings, SGD):
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)


def pruned(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What an epoch's row says of an optimiser that sets weights to zero: their ``density``; nothing for others."""
    return {"density": optimizer.density()} if isinstance(optimizer, BetaLassoSGD) else {}


def _beta_lasso(
    network: nn.Module, settings: BetaLasso, weights: list[nn.Parameter], free: list[nn.Parameter]
) -> BetaLassoSGD:
    """One penalty for convolutions and the first layer, which stands for one in S-FC, and one for all other weights."""
    maps = [module for module in network.modules() if isinstance(module, SparseMap)]
    kernels = {layer.weight for layer in maps if layer is maps[0] or isinstance(layer, SparseConv)}
    groups = [
        {"params": [w for w in weights if w in kernels], "lasso": settings.conv_lambda},
        {"params": [w for w in weights if w not in kernels], "lasso": settings.fc_lambda},
    ]
    groups = [{**group, "weight_decay": settings.weight_decay} for group in groups]
    return BetaLassoSGD([*groups, {"params": free}], lr=settings.lr, beta=settings.beta)


def learning_rate(settings: AnyOptim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step 0, 1, ...: linear from zero over the warm-up, then constant or a half cosine to zero."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    course = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * course))
