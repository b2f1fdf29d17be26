"""Interrupted anywhere and any number of times, a run is the undisturbed one bit for bit: on a CPU, with one thread."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mixersweep.families import FAMILIES
from tests.training.small import DIGITS, SIZES, StopAfter, assert_identical, directory, finished, rows, stopped

PATCHES = ("depth=2", "image_size=8", "patch_size=2", "tokens=16", "channels=5")
SHAPES = {
    "mixer_ss_8": PATCHES,
    "mixer_ss_w": PATCHES,
    "mixer_b_w": PATCHES,
    "mixer_b16": PATCHES,
    "shallow_monarch": (),
    "shallow_kronecker": (),
    "block_diagonal": ("depth=2", "width=30", "connections=150"),
    "btt": ("depth=2", "width=30", "connections=330"),
    "butterfly": ("depth=2", "width=30", "connections=300"),
    "low_rank": ("depth=2", "width=30", "connections=150"),
    "mlp": ("model.head=linear",),
    "golubeva_mlp": ("width=80",),
    "golubeva_resnet18": ("width=16", "model.base_width=8", "batch_size=60"),
    "s_fc": ("model.alpha=1",),
}
FEATURES = {
    "adamw": ("model=sw_mlp", "optim=adamw", "optim.clip_norm=1", "optim.label_smoothing=0.1"),
    "beta_lasso": ("model=s_fc", "optim=beta_lasso", "batch_size=300"),
    "timm": ("model=mlp", "model.head=linear", "optim=timm", "optim.optimizer=lamb"),
    "warm-up, constant": ("model=pk", "optim.warmup_epochs=1", "optim.schedule=constant"),
    "mixup, cutmix": ("model=mixer", "augment.mixup=0.5", "augment.cutmix=0.5"),
    "erasing": ("model=rp_mixer", "augment.erasing=0.5"),
    "ema": ("model=rp_s_mixer", "ema=0.9"),
    "ema, BatchNorm": ("model=s_fc", "ema=0.9"),
    "stochastic depth": ("model=sw_mlp", "stochastic_depth=0.5"),
    "workers": ("model=s_mixer", "augment=auto_augment", "workers=1"),
    "accumulation": ("model=monarch", "accumulation=4", "stochastic_depth=0.3", "augment.mixup=0.5"),
    "recomputed": ("model=mixer", "gradient_checkpointing=true", "stochastic_depth=0.3"),
    "bf16": ("model=s_mixer", "precision=bf16"),
    "fp16": ("model=sw_mlp", "precision=fp16"),
    "set": ("model=sw_mlp", "optim.rewire=set", "optim.rewire_every=2"),
    "set, adamw, ema": ("model=golubeva_mlp", "optim=adamw", "optim.rewire=set", "ema=0.9"),
    "set, fp16": ("model=sw_mlp", "optim.rewire=set", "optim.rewire_every=3", "precision=fp16"),
    "rigl, ema, bf16": ("model=sw_mlp", "optim.rewire=rigl", "optim.rewire_every=2", "ema=0.9", "precision=bf16"),
    "rigl, adamw, accumulation": (
        *("model=sw_mlp", "optim=adamw", "optim.rewire=rigl", "optim.rewire_every=3", "accumulation=4"),
        *("gradient_checkpointing=true", "stochastic_depth=0.3", "optim.clip_norm=1"),
    ),
    "srigl": ("model=sw_mlp", "model.mask=fixed_fan_in", "optim.rewire=srigl", "optim.rewire_every=1"),
    "rare checkpoints": ("model=pk", "checkpoint.every=3", "epochs=4"),
    "checkpoints all the time": ("model=mixer", "checkpoint.minutes=1e-6"),
    "no validation": ("model=mlp", "model.head=linear", "validation=0"),
    "all": (
        *("model=mixer", "optim=adamw", "optim.clip_norm=1", "ema=0.9", "stochastic_depth=0.5", "accumulation=2"),
        *("augment.mixup=0.5", "augment.cutmix=0.5", "augment.erasing=0.3", "gradient_checkpointing=true"),
    ),
}
CASES = {
    **{family: (f"model={family}", *SHAPES.get(family, SIZES)) for family in FAMILIES},
    **{name: (*overrides, *SHAPES.get(overrides[0].partition("=")[2], SIZES)) for name, overrides in FEATURES.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_anywhere_it_is_the_undisturbed_run(
    case: str, tmp_path: Path, digits: Path, few_images: Callable[[int, int], list[str]]
) -> None:
    few = few_images(271, 100) if case == "golubeva_resnet18" else ()
    overrides = (*DIGITS, *CASES[case], f"data_dir={digits}", *few)
    whole = finished(directory(tmp_path / "whole", *overrides))
    draw = random.Random(case)
    stops = [StopAfter(draw.randint(1, 5), killed=draw.random() < 0.5) for _ in range(3)]
    parts = directory(tmp_path / "parts", *overrides)
    assert stopped(parts, [StopAfter(2), *stops]) >= 2
    assert_identical(finished(parts), whole)


def test_at_every_batch_of_training_and_evaluation(tmp_path: Path, digits: Path) -> None:
    """Stopped after each batch in turn; then killed after each, when only what is saved by the minute is left."""
    overrides = (*DIGITS, "model=s_mixer", *SIZES, "ema=0.9", "batch_size=700", f"data_dir={digits}")
    whole = finished(directory(tmp_path / "whole", *overrides))
    for killed in (False, True):
        parts = directory(tmp_path / f"killed={killed}", *overrides, "checkpoint.minutes=1e-6")
        assert stopped(parts, [StopAfter(1 + n % 6, killed=killed) for n in range(50)]) >= 5
        assert_identical(parts, whole)


def test_killed_before_the_first_checkpoint_no_row_is_told_twice(tmp_path: Path, digits: Path) -> None:
    made = directory(
        tmp_path, *DIGITS, *SIZES, "checkpoint.every=5", "epochs=5", "batch_size=700", f"data_dir={digits}"
    )
    assert stopped(made, [StopAfter(10, killed=True)]) == 1
    assert [row["epoch"] for row in made.rows()] == [1, 2]
    assert not made.checkpoint.exists()
    finished(made)
    assert [row["epoch"] for row in rows(made)] == [1, 2, 3, 4, 5]


def test_where_it_goes_on_is_told(tmp_path: Path, digits: Path) -> None:
    made = directory(tmp_path, *DIGITS, *SIZES, f"data_dir={digits}")
    said: list[str] = []
    stopped(made, [StopAfter(2)])
    finished(made, said)
    assert said[1:] == ["going on after epoch 0 of 2 and 2 of 5 steps"]
    assert made.status().state == "completed"
