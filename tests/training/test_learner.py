"""One step: the same gradients whole or in parts, and nothing in it that waits for the device."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mixersweep.compose import config_of
from mixersweep.data.erasing import Boxes
from mixersweep.errors import UserError
from mixersweep.runs import solve
from mixersweep.training.learner import Learner
from mixersweep.training.loop import CHECK_EVERY
from mixersweep.training.parallel import World
from mixersweep.training.progress import TrainingProgress
from mixersweep.training.steps import Step
from tests.training.small import DIGITS, SIZES, directory, finished

CPU = torch.device("cpu")


def gradients(*overrides: str, images: int = 22) -> dict[str, Tensor]:
    """Of one step in float64."""
    learner = Learner(solve(config_of([*DIGITS, *overrides])), CPU, World(), "auto")
    learner.network.double()
    generator = torch.Generator().manual_seed(0)
    step = Step(
        epoch=1,
        number=0,
        index=0,
        images=torch.randn(images, 1, 8, 8, generator=generator, dtype=torch.float64),
        labels=torch.randint(10, (images,), generator=generator),
        count=images,
        rate=0.1,
        augmentation=3,
    )
    learner.train()
    loss, logits = learner.step(step)
    assert (loss.shape, logits.shape) == ((), (images, 10))
    found = {name: p.grad for name, p in learner.network.named_parameters() if p.grad is not None}
    assert len(found) > 5
    return {**found, "loss": loss, "logits": logits}


@pytest.mark.parametrize("parts", [2, 3, 22, 100])
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=s_mixer"],
        ["model=sw_mlp", "model.storage=dense", "stochastic_depth=0.5", "augment.mixup=0.7", "augment.cutmix=0.7"],
        ["model=mixer", "optim.label_smoothing=0.2", "gradient_checkpointing=true", "optim.clip_norm=0.01"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_parts_of_a_batch_have_the_gradients_of_the_whole(overrides: list[str], parts: int) -> None:
    whole, summed = (gradients(*SIZES, *overrides, f"accumulation={n}") for n in (1, parts))
    for name, expected in whole.items():
        torch.testing.assert_close(summed[name], expected, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("model", [["model=s_fc"], ["model=golubeva_resnet18", "width=16", "model.base_width=8"]])
def test_networks_that_normalise_over_a_batch_refuse_parts_of_it(model: list[str]) -> None:
    run = solve(config_of([*DIGITS, *model, "batch_size=128", "accumulation=4"]))
    with pytest.raises(UserError, match=r"accumulation=4: .* normalises over the whole batch; use 1, or batch_size=32"):
        Learner(run, CPU, World(), "auto")


# --- waiting for the device --------------------------------------------------------------------------------------


class Waits(TorchFunctionMode):
    """Counts by step what makes the host wait for a device: values asked for, copies to the host."""

    ASKING = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.step, self.found = 0, Counter[int]()
        self.below = _Scalars(self)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in self.ASKING:
            self.found[self.step] += 1
        return function(*args, **(kwargs or {}))


class _Scalars(TorchDispatchMode):
    """The same below Python, which the optimisers of torch ask of their step counts, on the host, alone."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.waits.found[self.waits.step] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=s_mixer"],
        ["model=sw_mlp", "model.storage=sparse", "optim.clip_norm=1"],
        ["model=s_fc", "optim=beta_lasso", "batch_size=10"],
        [
            *("model=mixer", "augment.mixup=0.5", "augment.cutmix=0.5", "augment.erasing=0.5", "ema=0.9"),
            *("stochastic_depth=0.5", "accumulation=2", "gradient_checkpointing=true", "precision=bf16"),
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_host_waits_for_the_device_once_in_a_while(
    overrides: list[str], tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [] if overrides[0] == "model=s_fc" else SIZES
    waits = Waits()

    def step(self: TrainingProgress) -> None:
        waits.step += 1

    monkeypatch.setattr(TrainingProgress, "step", step)
    monkeypatch.setattr(Boxes, "erase", Boxes.erase_together)  # as on a GPU
    made = directory(tmp_path, *DIGITS, *sizes, "epochs=1", "batch_size=10", *overrides, f"data_dir={digits}")
    with waits, waits.below:
        finished(made)
    steps = waits.step
    assert steps == 130
    waiting = {step for step in waits.found if 0 < step < steps}
    assert waiting == {CHECK_EVERY, 2 * CHECK_EVERY}
    assert all(waits.found[step] <= 6 for step in waiting), waits.found
    assert waits.found[steps] > 0  # the epoch's end: the counter counts
