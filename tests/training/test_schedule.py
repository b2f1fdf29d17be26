"""The learning rate of every step, against torch's and timm's own schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from mixersweep.compose import config_of
from mixersweep.config.schema import AnyOptim
from mixersweep.training.schedule import learning_rate

PER_EPOCH, EPOCHS = 7, 20
STEPS = PER_EPOCH * EPOCHS


def settings(*overrides: str) -> AnyOptim:
    return config_of(["optim.lr=0.4", f"epochs={EPOCHS}", *overrides]).optim


def ours(optim: AnyOptim, steps: range = range(STEPS)) -> list[float]:
    return [learning_rate(optim, step, PER_EPOCH, EPOCHS) for step in steps]


def optimizer() -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=0.4)


def of_torch(make: Callable[[SGD], torch.optim.lr_scheduler.LRScheduler], steps: int = STEPS) -> list[float]:
    held = optimizer()
    scheduler, found = make(held), []
    for _ in range(steps):
        found.append(held.param_groups[0]["lr"])
        held.step()
        scheduler.step()
    return found


def of_timm(make: Callable[[SGD], Scheduler], steps: range = range(STEPS)) -> list[float]:
    held = optimizer()
    scheduler, found = make(held), []
    for step in steps:
        scheduler.step_update(step)
        found.append(held.param_groups[0]["lr"])
    return found


def approx(values: list[float]) -> object:
    return pytest.approx(values, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("min_lr", [0.0, 0.01])
def test_the_cosine_is_torchs_and_timms(min_lr: float) -> None:
    rates = ours(settings(f"optim.min_lr={min_lr}"))
    assert rates == approx(of_torch(lambda held: CosineAnnealingLR(held, STEPS, eta_min=min_lr)))
    assert rates == approx(of_timm(lambda held: CosineLRScheduler(held, STEPS, lr_min=min_lr, t_in_epochs=False)))
    assert rates[0] == 0.4
    assert min_lr < rates[-1] < min_lr + 0.001
    assert ours(settings(f"optim.min_lr={min_lr}"), range(STEPS, STEPS + 1)) == [pytest.approx(min_lr, abs=1e-15)]


@pytest.mark.parametrize("warmup_lr", [0.0, 1e-3])
def test_the_warm_up_is_timms_one_step_on_and_the_cosine_follows_it(warmup_lr: float) -> None:
    """timm's first step has ``warmup_lr`` itself, here it is one step before: with 0 no step is lost."""
    warmup = 3 * PER_EPOCH
    rates = ours(settings("optim.warmup_epochs=3", f"optim.warmup_lr={warmup_lr}", "optim.min_lr=0.01"))

    def timms(held: SGD) -> Scheduler:
        return CosineLRScheduler(
            held,
            STEPS - warmup,
            lr_min=0.01,
            warmup_t=warmup,
            warmup_lr_init=warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    assert rates[:warmup] == approx(of_timm(timms, range(1, warmup + 1)))
    assert rates[warmup:] == approx(of_timm(timms, range(warmup, STEPS)))
    assert rates[warmup - 1] == pytest.approx(0.4)
    assert rates[warmup] == 0.4 > rates[warmup + 1]
    assert rates[0] == pytest.approx(warmup_lr + (0.4 - warmup_lr) / warmup)


def test_the_warm_up_is_torchs_linear_one() -> None:
    rates = ours(settings("optim.warmup_epochs=3", "optim.schedule=constant"))
    theirs = of_torch(lambda held: LinearLR(held, 1 / (3 * PER_EPOCH), total_iters=3 * PER_EPOCH - 1))
    assert rates == approx(theirs)
    assert len(set(rates[3 * PER_EPOCH :])) == 1


def test_steps_are_those_of_torch_at_the_ends_of_epochs() -> None:
    rates = ours(settings("optim.schedule=step", "optim.milestones=[5,12,30]", "optim.milestone_factor=0.2"))
    marks = [milestone * PER_EPOCH for milestone in (5, 12, 30)]
    assert rates == approx(of_torch(lambda held: MultiStepLR(held, marks, gamma=0.2)))
    assert {round(rate, 9) for rate in rates} == {0.4, 0.08, 0.016}


def test_a_constant_rate_is_constant() -> None:
    assert set(ours(settings("optim.schedule=constant"))) == {0.4}


def test_without_the_settings_added_later_every_rate_is_the_same_number_as_before_them() -> None:
    for warmup in (0, 0.5, 3):
        optim, steps = settings(f"optim.warmup_epochs={warmup}"), round(warmup * PER_EPOCH)
        before = [
            optim.lr * (step + 1) / steps
            if step < steps
            else optim.lr * 0.5 * (1 + math.cos(math.pi * ((step - steps) / max(1, STEPS - steps))))
            for step in range(STEPS)
        ]
        assert ours(optim) == before  # to the last bit


def test_a_warm_up_of_the_whole_run_ends_at_lr() -> None:
    assert ours(settings(f"optim.warmup_epochs={EPOCHS}"))[-1] == pytest.approx(0.4)
