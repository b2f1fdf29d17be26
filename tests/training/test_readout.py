"""What a head can tell apart at the start: ``readout_rank``, in the record of every run."""

from pathlib import Path

import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.config import warnings
from mixersweep.data.splits import open_splits
from mixersweep.families import FAMILIES
from mixersweep.layers import SparseWeights
from mixersweep.models import build
from mixersweep.runs import solve
from mixersweep.training.readout import at_start
from tests.training.small import DIGITS, StopAfter, directory, finished, stopped

SHAPES = {"wide": ["tokens=13", "channels=30"], "tall": ["tokens=39", "channels=10"]}


def rank_of(digits: Path, *overrides: str) -> int | None:
    run = solve(config_of([*DIGITS, "depth=2", f"data_dir={digits}", *overrides]))
    splits = open_splits(run.config, torch.device("cpu"), workers=0)
    try:
        return at_start(run, splits.train)["readout_rank"]
    finally:
        splits.close()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["s_mixer", "rp_s_mixer", "mixer", "pk", "monarch", "sw_mlp", "mlp"])
def test_signed_groups_have_their_whole_rank_in_every_family_and_plain_ones_miss_the_sum_of_all(
    family: str, shape: str, digits: Path
) -> None:
    overrides = [f"model={family}", *SHAPES[shape], "model.readout_dimension=16", "connections=auto"]
    assert rank_of(digits, *overrides, "model.head=signed_groups") == 16
    assert rank_of(digits, *overrides, "model.head=groups") == 15, "a norm makes the sum of all units zero"


@pytest.mark.parametrize(
    ("overrides", "rank"),
    [
        (["model=s_mixer", *SHAPES["tall"]], 9),
        (["model=sw_mlp", "width=70", "connections=500"], 17),  # of 18 channels, from 4 patches of 16 pixels
        (["model=mlp", "width=auto", "connections=64"], 1),
        (["model=mlp", "width=auto", "connections=64", "model.head=linear"], 7),
    ],
)
def test_means_of_what_a_norm_gives_miss_one_direction(overrides: list[str], rank: int, digits: Path) -> None:
    assert rank_of(digits, *overrides, "patch_size=4", "image_size=8") == rank


def test_a_head_that_sees_a_constant_has_rank_0(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(config: object, architecture: object) -> torch.nn.Module:
        network = build(config, architecture)  # type: ignore[arg-type]
        torch.nn.init.zeros_(network.norm.weight)  # type: ignore[union-attr,arg-type]
        torch.nn.init.ones_(network.norm.bias)  # type: ignore[union-attr,arg-type]
        return network

    monkeypatch.setattr("mixersweep.training.readout.build", constant)
    assert rank_of(digits, "model=s_mixer", *SHAPES["wide"]) == 0


def test_every_family_has_a_rank(digits: Path) -> None:
    small = {"golubeva_mlp": ["model.weights_total=600"], "golubeva_resnet18": ["model.base_width=8"]}
    skipped = ("mixer_ss_8", "mixer_ss_w", "mixer_b16", "mixer_b_w", "s_fc")  # large, or of 32 pixels
    for family in FAMILIES:
        if family in skipped:
            continue
        depth = [] if family in small else ["depth=2"]
        run = solve(config_of([*DIGITS, f"data_dir={digits}", f"model={family}", *small.get(family, []), *depth]))
        splits = open_splits(run.config, torch.device("cpu"), workers=0)
        rank = at_start(run, splits.train)["readout_rank"]
        splits.close()
        assert rank is not None
        assert run.architecture.readout_dimension is not None
        assert 0 < rank <= run.architecture.readout_dimension


def test_it_stands_in_the_record_whatever_stopped_the_run(tmp_path: Path, digits: Path) -> None:
    overrides = (*DIGITS, f"data_dir={digits}", "depth=2", "model=s_mixer", *SHAPES["wide"], "model.head=signed_groups")
    whole = finished(directory(tmp_path / "whole", *overrides))
    record = whole.result()
    assert record is not None
    assert (record["readout_dimension"], record["readout_rank"]) == (64, 64)
    halves = directory(tmp_path / "halves", *overrides)
    assert stopped(halves, [StopAfter(7)]) == 1
    assert finished(halves).result()["readout_rank"] == 64


def test_how_many_connections_a_bernoulli_mask_has_is_recorded(digits: Path) -> None:
    overrides = [*DIGITS, f"data_dir={digits}", "depth=1", "model=sw_mlp", "width=100", "connections=1000"]
    drawn = {}
    for mask in ("exact", "bernoulli"):
        run = solve(config_of([*overrides, f"model.mask={mask}"]))
        splits = open_splits(run.config, torch.device("cpu"), workers=0)
        drawn[mask] = at_start(run, splits.train)["connections_drawn"]
        splits.close()
        layers = [layer for layer in build(run.config, run.architecture).modules() if isinstance(layer, SparseWeights)]
        assert drawn[mask] == sum(int((layer.to_dense() != 0).sum()) for layer in layers) / 2
        assert any("connections_drawn" in text for text in warnings(run.config, run.architecture)) == (
            mask == "bernoulli"
        )
    assert drawn["exact"] == 1000
    assert 0 < abs(drawn["bernoulli"] - 1000) < 130, "6 standard deviations of a mean of two"
