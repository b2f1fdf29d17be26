"""Mixed precision on a CPU: near fp32, resumable to the last bit, its scaler saved."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.runs import solve
from mixersweep.training.checkpoint import load_checkpoint
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.precision import DTYPES
from mixersweep.training.steps import Step
from tests.training.small import DIGITS, SIZES, StopAfter, assert_identical, directory, finished, stopped

KINDS = {
    "s_mixer": ("model=s_mixer", *SIZES),
    "mixer": ("model=mixer", *SIZES),
    "random permutations": ("model=rp_s_mixer", *SIZES),
    "untied": ("model=pk", "model.tied=false", *SIZES),
    "sparse": ("model=sw_mlp", "model.storage=sparse", *SIZES),
    "dense": ("model=sw_mlp", "model.storage=dense", *SIZES),
    "monarch": ("model=monarch", *SIZES),
    "butterfly": ("model=butterfly", "width=96", "connections=1248", "depth=2"),
    "low rank": ("model=low_rank", "width=96", "connections=1056", "depth=2"),
    "convolution": ("model=golubeva_resnet18", "width=16", "model.base_width=8", "batch_size=40", "optim.lr=0.01"),
}


CPU = torch.device("cpu")


def one_step(*overrides: str, given_in: torch.dtype = torch.float32, images: int = 16) -> tuple[float, Tensor, Tensor]:
    """The loss, the logits and the gradient of a step from weights and images that a format has exactly."""
    plain = ("optim.weight_decay=0", "optim.momentum=0", "optim.nesterov=false", "patch_size=8", "tracking=none")
    config = config_of([*overrides, *plain])
    learner = Learner(solve(config), CPU, World(), "auto")
    learner.train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, config.data.image_channels, config.image_size, config.image_size, generator=generator)
    labels = torch.randint(config.data.classes, (images,), generator=generator)
    x = x.to(given_in).float()
    with torch.no_grad():
        for parameter in learner.network.parameters():
            parameter.copy_(parameter.to(given_in))
    before = [parameter.detach().clone() for parameter in learner.network.parameters()]
    step = Step(epoch=1, number=0, index=0, images=x, labels=labels, count=images, rate=1.0, augmentation=0)
    loss, logits = learner.step(step)
    moved = zip(before, learner.network.parameters(), strict=True)
    gradient = torch.cat([(old - new.detach()).double().flatten() for old, new in moved])
    return float(loss), logits.double(), gradient


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_as_near_that_of_fp32_as_the_format_is(kind: str, precision: str) -> None:
    """How far one rounding of a number format carries is seen in fp32, from weights and images that are rounded to it.

    A map in that format rounds three times, its weights, what comes in and what goes out, and its backward three times
    again: what goes back, to weights and to features. So logits may be off by three such distances, and gradients by
    six. The loss is off by no more than the logits, whose cross-entropy has a slope of at most the root of two.
    """
    overrides = KINDS[kind]
    exact_loss, exact_logits, exact_gradient = one_step(*overrides)
    _, near_logits, near_gradient = one_step(*overrides, given_in=DTYPES[precision])
    loss, logits, gradient = one_step(*overrides, f"precision={precision}")
    off = float((logits - exact_logits).norm())
    assert 0 < off < 3 * float((near_logits - exact_logits).norm())
    assert 0 < float((gradient - exact_gradient).norm()) < 6 * float((near_gradient - exact_gradient).norm())
    assert abs(loss - exact_loss) < math.sqrt(2 / len(logits)) * off


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_resumable_to_the_bit(
    kind: str, precision: str, tmp_path: Path, digits: Path, few_images: Callable[[int, int], list[str]]
) -> None:
    few = few_images(100, 50) if kind == "convolution" else ()
    overrides = (*DIGITS, *KINDS[kind], f"data_dir={digits}", *few, f"precision={precision}")
    whole = finished(directory(tmp_path / "whole", *overrides))
    parts = directory(tmp_path / "parts", *overrides)
    assert stopped(parts, [StopAfter(1), StopAfter(3)]) == 2
    assert_identical(finished(parts), whole)
    kept = load_checkpoint(whole.checkpoint, whole.run.fingerprint)
    assert kept is not None
    scaler = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
    assert set(kept.scaler) == (scaler if precision == "fp16" else set())
    assert all(tensor.dtype != DTYPES[precision] for tensor in kept.model.values())
    if precision == "fp16":
        assert math.log2(kept.scaler["scale"]).is_integer()


def test_tf32_is_a_gpus(tmp_path: Path, digits: Path) -> None:
    with pytest.raises(UserError, match=r"precision=tf32: .* on a CPU use fp32"):
        finished(directory(tmp_path, *DIGITS, *SIZES, "precision=tf32", f"data_dir={digits}"))
