"""Mixed precision on a CPU: near fp32, resumable to the last bit, its scaler saved."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mixersweep.errors import UserError
from mixersweep.training.checkpoint import load_checkpoint
from tests.training.small import DIGITS, SIZES, StopAfter, assert_identical, directory, finished, stopped

KINDS = {
    "s_mixer": ("model=s_mixer", *SIZES),
    "mixer": ("model=mixer", *SIZES),
    "random permutations": ("model=rp_s_mixer", *SIZES),
    "untied": ("model=pk", "model.tied=false", *SIZES),
    "sparse": ("model=sw_mlp", "model.storage=sparse", *SIZES),
    "dense": ("model=sw_mlp", "model.storage=dense", *SIZES),
    "monarch": ("model=monarch", *SIZES),
    "convolution": ("model=golubeva_resnet18", "width=16", "model.base_width=8", "batch_size=40", "optim.lr=0.01"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_near_those_of_fp32_and_resumable(
    kind: str, tmp_path: Path, digits: Path, few_images: Callable[[int, int], list[str]]
) -> None:
    common = (*DIGITS, *KINDS[kind], f"data_dir={digits}", *(few_images(100, 50) if kind == "convolution" else ()))
    exact = finished(directory(tmp_path, *common)).rows()
    for precision in ("bf16", "fp16"):
        overrides = (*common, f"precision={precision}")
        whole = finished(directory(tmp_path / "whole", *overrides))
        for row, near in zip(whole.rows(), exact, strict=True):
            assert row["train_loss"] == pytest.approx(near["train_loss"], rel=0.03)
            assert row["test_loss"] == pytest.approx(near["test_loss"], rel=0.03)
            assert row["train_loss"] != near["train_loss"]
        parts = directory(tmp_path / "parts", *overrides)
        assert stopped(parts, [StopAfter(1), StopAfter(3)]) == 2
        assert_identical(finished(parts), whole)
        kept = load_checkpoint(whole.checkpoint, whole.run.fingerprint)
        assert kept is not None
        assert set(kept.scaler) == (
            {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
            if precision == "fp16"
            else set()
        )
        assert all(str(tensor.dtype) != "torch.float16" for tensor in kept.model.values())
        if precision == "fp16":
            assert math.log2(kept.scaler["scale"]).is_integer()


def test_tf32_is_a_gpus(tmp_path: Path, digits: Path) -> None:
    with pytest.raises(UserError, match=r"precision=tf32: .* on a CPU use fp32"):
        finished(directory(tmp_path, *DIGITS, *SIZES, "precision=tf32", f"data_dir={digits}"))
