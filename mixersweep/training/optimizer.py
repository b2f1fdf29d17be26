"""The optimiser and the course of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from mixersweep.config.schema import SGD, AnyOptim


def make_optimizer(network: nn.Module, settings: AnyOptim) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters; weight decay acts on weights, not on biases and norms."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = name == "weight" and not isinstance(module, nn.LayerNorm)
            (decayed if weight else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if isinstance(settings, SGD):
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)


def learning_rate(settings: AnyOptim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step 0, 1, ...: linear from zero over the warm-up, then constant or a half cosine to zero."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    course = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * course))
