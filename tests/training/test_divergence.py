"""A run that is no longer finite ends as diverged, and says where it began: always in the same words."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from mixersweep.errors import RunDiverged
from mixersweep.runs import RunDirectory
from mixersweep.training.checkpoint import load_checkpoint
from mixersweep.training.divergence import first_nonfinite_layer
from tests.training.small import DIGITS, SIZES, StopAfter, directory, finished, stopped

SMALL = (*DIGITS, *SIZES, "model=s_mixer", "epochs=4")
STEPS = 5
LATER = ("optim.schedule=step", "optim.milestones=[2]", "optim.milestone_factor=1e25")
"""A learning rate that nothing stands, from the third epoch on."""


def words(made: RunDirectory, said: list[str] | None = None) -> str:
    with pytest.raises(RunDiverged) as error:
        finished(made, said)
    assert (made.status().state, made.status().error) == ("diverged", str(error.value))
    assert not (made.path / "result.json").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["optim.lr=1e25"], r"not finite in step 2 of epoch 1, at learning rate 9\.\d+e\+24: the output of \S+ is not"),
        (["optim.lr=1e38", "optim.momentum=0.9"], r"step \d of epoch 1, .*: the (update|output) of [a-z0-9._]+ is not"),
        (["optim=adamw", "optim.lr=1e30"], r"step 2 of epoch 1, .*: the output of"),
        (["optim.lr=1e25", "optim.clip_norm=1"], r"step 2 of epoch 1, .*: the output of"),
        (["optim.lr=1e25", "precision=bf16"], r"step 2 of epoch 1, .*: the output of"),
        (["optim.lr=1e25", "accumulation=3"], r"step 2 of epoch 1, .*: the output of"),
        (["optim.lr=1e25", "augment.mixup=1", "stochastic_depth=0.5"], r"step 2 of epoch 1, .*: the output of"),
        (
            ["optim.lr=1e30", "batch_size=1400"],
            r"in the validation_loss of epoch 1, at learning rate .*: the output of",
        ),
        (["optim.lr=1e30", "batch_size=1500", "validation=0"], r"in the test_loss of epoch 1, .*: the output of"),
        (
            [*LATER],
            r"step 2 of epoch 3, at learning rate 1e\+24: the output of \S+ is not finite; "
            r"the last good epoch is 2 \(train loss 2\.\d+, test accuracy 0\.\d+\)$",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_says_step_rate_layer_and_the_last_good_epoch(
    overrides: list[str], pattern: str, tmp_path: Path, digits: Path
) -> None:
    text = words(directory(tmp_path, *SMALL, *overrides, f"data_dir={digits}"))
    assert re.search(pattern, text), text


@pytest.mark.parametrize("every", [1, 3, 4])
def test_it_says_the_same_however_often_it_was_interrupted(every: int, tmp_path: Path, digits: Path) -> None:
    """Also far behind the last checkpoint, and stopped between the bad step and the look at it."""
    overrides = (*SMALL, *LATER, f"data_dir={digits}", f"checkpoint.every={every}")
    undisturbed = words(directory(tmp_path / "undisturbed", *overrides))
    for checks in (STEPS + 1, 2 * (STEPS + 2) + 2, 2 * (STEPS + 2) + 4):
        made = directory(tmp_path / str(checks), *overrides)
        stopped(made, [StopAfter(checks)])
        made_words = made.status().error if made.status().state == "diverged" else words(made)
        assert made_words == undisturbed


def test_no_checkpoint_holds_what_is_not_finite(tmp_path: Path, digits: Path) -> None:
    made = directory(tmp_path, *SMALL, *LATER, "checkpoint.minutes=1e-6", f"data_dir={digits}")
    words(made)
    kept = load_checkpoint(made.checkpoint, made.run.fingerprint)
    assert kept is not None
    assert (len(kept.rows), kept.step) == (2, 1)  # after the first step of such a rate, which the second cannot stand
    assert all(bool(tensor.isfinite().all()) for tensor in kept.model.values())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_weight_is_named(poison: float, tmp_path: Path, digits: Path) -> None:
    made = directory(tmp_path, *SMALL, f"data_dir={digits}")
    stopped(made, [StopAfter(STEPS + 2 + 1)])
    kept = load_checkpoint(made.checkpoint, made.run.fingerprint)
    assert kept is not None
    name = "blocks.1.channel_mixing.0.weight"
    kept.model[name][0, 0] = poison
    kept.save(made.checkpoint)
    text = words(made)
    assert "step 2 of epoch 2" in text
    assert f"the parameter {name} is not finite; the last good epoch is 1 (" in text


def test_a_fault_of_the_machine_is_told_apart(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens once, and not again in the same steps."""
    from mixersweep.training.learner import Learner

    original, calls = Learner.step, [0]

    def step(self, given):
        calls[0] += 1
        if calls[0] == 7:
            with torch.no_grad():
                next(iter(self.network.parameters()))[0, 0] = float("nan")
        return original(self, given)

    monkeypatch.setattr(Learner, "step", step)
    text = words(directory(tmp_path, *SMALL, f"data_dir={digits}"))
    assert "step 2 of epoch 2" in text
    assert "the same steps trained again stay finite, so look at the machine" in text


def test_steps_that_fp16s_scaler_skips_are_no_divergence(tmp_path: Path, digits: Path) -> None:
    made = directory(tmp_path, *SMALL, "precision=fp16", f"data_dir={digits}")
    stopped(made, [StopAfter(1)])
    kept = load_checkpoint(made.checkpoint, made.run.fingerprint)
    assert kept is not None
    kept.scaler["scale"] = 2.0**40
    kept.save(made.checkpoint)
    finished(made)
    last = load_checkpoint(made.checkpoint, made.run.fingerprint)
    assert last is not None
    assert last.scaler["scale"] < 2.0**35


def test_a_scale_of_the_loss_that_only_falls_is_one(tmp_path: Path, digits: Path) -> None:
    made = directory(tmp_path, *SMALL, "precision=fp16", f"data_dir={digits}")
    stopped(made, [StopAfter(1)])
    kept = load_checkpoint(made.checkpoint, made.run.fingerprint)
    assert kept is not None
    kept.scaler["scale"] = 1e-7
    kept.save(made.checkpoint)
    assert "gradients overflow at any scale of the loss" in words(made)


# --- one forward pass --------------------------------------------------------------------------------------------


class Overflowing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e30 * 1e30


def test_the_first_layer_is_found() -> None:
    network = nn.Sequential(nn.Linear(3, 3), Overflowing(), nn.Linear(3, 3))
    assert first_nonfinite_layer(network, lambda: network(torch.ones(1, 3)).sum()) == "the output of 1 is not finite"
    fine = nn.Sequential(nn.Linear(3, 3))
    assert first_nonfinite_layer(fine, lambda: fine(torch.ones(1, 3)).sum()) is None
    assert first_nonfinite_layer(fine, lambda: fine(torch.ones(1, 3)).sum() / 0) == "the loss itself is not finite"
    with torch.no_grad():
        fine[0].bias[1] = float("nan")
    assert first_nonfinite_layer(fine, lambda: torch.zeros(())) == "the parameter 0.bias is not finite"
    assert not fine[0]._forward_hooks
