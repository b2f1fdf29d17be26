"""The schedules of learning rate and rewiring: functions of the step alone, so resuming needs no state."""

from __future__ import annotations

import math

from mixersweep.config.schema import AnyOptim, Rewired


def learning_rate(settings: AnyOptim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of step 0, 1, ... of ``epochs * steps_per_epoch``; groups multiply it by their ``lr_scale``.

    During warm-up it rises linearly to ``lr`` at the last warm-up step; ``warmup_lr`` would be the rate one step before
    the first. Then:

    - ``constant``: ``lr``.
    - ``cosine``: half a cosine over the steps after the warm-up, from ``lr`` to ``min_lr``, which would be the rate of
      the step after the last (Loshchilov & Hutter 2017, 1608.03983, eq 5, without restarts; the same as torch's
      ``CosineAnnealingLR``, or timm's with ``warmup_prefix``, updated every step).
    - ``step``: ``lr``, multiplied by ``milestone_factor`` after each of the ``milestones``, in epochs since the start.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.warmup_lr + (settings.lr - settings.warmup_lr) * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones or [])
        return settings.lr * settings.milestone_factor**passed
    course = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * course))


def rewired_share(settings: AnyOptim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The share of each layer's connections that is rewired at step 0, 1, ...; 0 where none is due.

    One is due at the multiples of ``rewire_every`` above 0 and below ``rewire_until`` of all steps. With ``set`` it is
    always ``rewire_share``; else that times half a cosine (Evci et al. 2020, 1911.11134, f_decay), 0 at that end.
    """
    if not isinstance(settings, Rewired) or settings.rewire == "none":
        return 0.0
    every, end = settings.rewire_pace(steps_per_epoch, epochs)
    if not step or step % every or step >= end:
        return 0.0
    return settings.rewire_share * (1.0 if settings.rewire == "set" else 0.5 * (1 + math.cos(math.pi * step / end)))


def updates_before(settings: AnyOptim, step: int, steps_per_epoch: int, epochs: int) -> int:
    """The number of the optimiser's updates before step 0, 1, ...: rewiring by gradients takes the place of one."""
    if not isinstance(settings, Rewired) or settings.rewire in ("none", "set"):
        return step
    every, _ = settings.rewire_pace(steps_per_epoch, epochs)
    return step - sum(rewired_share(settings, each, steps_per_epoch, epochs) > 0 for each in range(every, step, every))
