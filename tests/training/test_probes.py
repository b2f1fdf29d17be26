"""Probes change nothing, say what is true, survive stops and kills, and stay within their share of the time."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixersweep.analysis.subjects import chosen, mixing_maps
from mixersweep.cli import main
from mixersweep.compose import config_of
from mixersweep.families import FAMILIES
from mixersweep.layers.sparsity import hoyer
from mixersweep.runs import RunDirectory, solve
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.probes import PROBES, activation_rank, gradient_norm, spectrum
from tests.training.small import DIGITS, SIZES, StopAfter, assert_identical, directory, finished, stopped
from tests.training.test_resume import SHAPES

ALL = ("probes=[spectrum,sparsity,gradient_norm,activation_rank]", "probe_every=1")
CASES = {
    "s_mixer": ("model=s_mixer", *SIZES, "stochastic_depth=0.3", "ema=0.9"),
    "sw_mlp": ("model=sw_mlp", "width=150", "connections=700", "depth=2"),
    "golubeva_mlp": ("model=golubeva_mlp", "width=80"),
    "golubeva_resnet18": ("model=golubeva_resnet18", "width=16", "model.base_width=8", "optim.clip_norm=0.5"),
    "s_fc": ("model=s_fc", "model.alpha=1", "optim=beta_lasso", "batch_size=300", "ema=0.9"),
    "monarch": ("model=monarch", *SIZES, "accumulation=4", "optim=adamw"),
    "fp16": ("model=rp_mixer", *SIZES, "precision=fp16", "gradient_checkpointing=true"),
    "workers": ("model=pk", "model.tied=false", *SIZES, "augment=auto_augment", "workers=1"),
}


def found(made: RunDirectory) -> list[dict[str, Any]]:
    """The rows, but for what a clock says."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in made.probes()]


@pytest.mark.parametrize("case", CASES)
def test_a_probed_run_is_the_same_run_also_when_it_is_interrupted(
    case: str, tmp_path: Path, digits: Path, few_images: Callable[[int, int], list[str]]
) -> None:
    few = few_images(271, 100) if case == "golubeva_resnet18" else ()
    settings = (*DIGITS, *CASES[case], f"data_dir={digits}", *few)
    plain = finished(directory(tmp_path / "plain", *settings))
    probed = finished(directory(tmp_path / "probed", *settings, *ALL))
    assert plain.run.fingerprint == probed.run.fingerprint and plain.path.name == probed.path.name
    assert_identical(plain, probed)
    rows = found(probed)
    assert [row["epoch"] for row in rows] == [1, 2] and not plain.probes()
    kinds = {key.split("/")[0] for key in rows[0]} - {"epoch"}
    assert kinds - {"spectrum_smallest"} == {
        *("spectrum_largest", "sparsity_hoyer", "sparsity_l1_over_l2", "gradient_norm", "activation_rank")
    }
    assert all(value is not None and value >= 0 for row in rows for value in row.values())
    assert rows[0] != {**rows[1], "epoch": 1}

    broken = directory(tmp_path / "broken", *settings, *ALL)
    assert stopped(broken, [StopAfter(3, killed=True), StopAfter(4), StopAfter(2)]) >= 2
    assert_identical(finished(broken), plain)
    assert found(broken) == rows


def test_stopped_and_killed_at_every_batch_each_epoch_is_there_once(tmp_path: Path, digits: Path) -> None:
    settings = (*DIGITS, "model=s_mixer", *SIZES, f"data_dir={digits}", *ALL, "epochs=3", "batch_size=700")
    whole = finished(directory(tmp_path / "whole", *settings))
    for killed, saved in ((False, "every=2"), (True, "minutes=1e-6"), (True, "every=2")):
        parts = directory(tmp_path / f"{killed}-{saved}", *settings, f"checkpoint.{saved}")
        most = 15 if saved == "every=2" and killed else 6  # to come as far as a checkpoint at all
        assert stopped(parts, [StopAfter(1 + n % most, killed=killed) for n in range(80)]) >= 3
        with (parts.path / "probes.jsonl").open("ab") as file:
            file.write(b'{"epoch": 9, "spectr')  # a crash in the middle of a row
        assert_identical(finished(parts), whole)
        assert found(parts) == found(whole)


def test_the_values_are_those_of_the_weights_and_come_every_so_many_epochs_and_last(
    tmp_path: Path, digits: Path
) -> None:
    settings = ("model=s_mixer", *SIZES, f"data_dir={digits}", ALL[0], "probe_every=2", "epochs=3")
    began = time.monotonic()
    made = finished(directory(tmp_path, *DIGITS, *settings))
    passed = time.monotonic() - began
    assert [row["epoch"] for row in made.probes()] == [2, 3]
    weights = torch.load(made.checkpoint, weights_only=True)["model"]
    row = found(made)[-1]
    for key, value in row.items():
        kind, _, layer = key.partition("/")
        if kind.startswith("spectrum"):
            values = torch.linalg.svdvals(weights[f"{layer}.weight"].double())
            assert value == pytest.approx(float(values[0 if kind == "spectrum_largest" else -1]))
        if kind == "sparsity_hoyer":
            assert value == pytest.approx(hoyer(weights[f"{layer}.weight"].double().numpy().ravel()))
    assert len([key for key in row if key.startswith("activation_rank")]) == 4
    assert all(1 <= value <= 30 for key, value in row.items() if key.startswith("activation_rank")), "at most S·C"
    norms = [value**2 for key, value in row.items() if key.startswith("gradient_norm/blocks")]
    assert 0 < sum(norms) < row["gradient_norm/all"] ** 2
    assert min(row["seconds"] for row in made.probes()) > 0
    assert sum(row["seconds"] for row in made.probes()) < passed


def learner(*overrides: str) -> Learner:
    run = solve(config_of([*DIGITS, *overrides]))
    return Learner(run, torch.device("cpu"), World(), "auto")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_all_of_them(family: str) -> None:
    made = learner(f"model={family}", *SHAPES.get(family, SIZES))
    made.network.eval()
    size = made.config.image_size
    images, labels = torch.randn(40, 1, size, size), torch.arange(40) % 10
    layers = set(mixing_maps(made.network))
    for name, probe in PROBES.items():
        values = dict(probe(made, images, labels))
        assert all(value is not None and 0 <= value < 1e6 for value in values.values())
        of = {key.partition("/")[2] for key in values} - {"all"}
        assert of == layers if name != "activation_rank" else of


def test_wide_sparse_weights_have_the_largest_singular_value_of_the_dense_matrix() -> None:
    for wide in (("model=sw_mlp", "width=300", "connections=2000", "depth=1"), ("model=mlp", "connections=40000")):
        made = learner(*wide)
        values = dict(spectrum(made, torch.empty(0), torch.empty(0)))
        for name, layer in mixing_maps(made.network).items():
            dense = torch.linalg.svdvals(layer.to_dense().detach().double())
            assert values[f"spectrum_largest/{name}"] == pytest.approx(float(dense[0]), rel=1e-5)


def test_the_gradient_is_the_one_of_backward_and_leaves_none_behind() -> None:
    made = learner("model=sw_mlp", "width=40", "connections=200", "depth=2", "accumulation=2")
    made.network.eval()
    images, labels = torch.randn(50, 1, 8, 8), torch.arange(50) % 10
    values = dict(gradient_norm(made, images, labels))
    assert all(parameter.grad is None for parameter in made.network.parameters())
    torch.nn.functional.cross_entropy(made.network(images), labels).backward()
    squares = [float((p.grad.double() ** 2).sum()) for p in made.network.parameters() if p.grad is not None]
    assert values["gradient_norm/all"] == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)
    for name, layer in mixing_maps(made.network).items():
        assert layer.weight.grad is not None
        assert values[f"gradient_norm/{name}"] == pytest.approx(float(layer.weight.grad.norm()), rel=1e-5)


def test_the_rank_of_features_in_few_directions_is_their_number() -> None:
    made = learner("model=s_fc", "model.alpha=1")
    made.network.eval()
    images = torch.zeros(64, 1, 8, 8)
    values = dict(activation_rank(made, images, torch.zeros(64)))
    assert all(np.isnan(value) for value in values.values() if value is not None), "all images equal: no direction"
    images[:32] = 1
    first, *_ = dict(activation_rank(made, images, torch.zeros(64))).values()
    assert first == pytest.approx(1, abs=0.05), "two kinds of image: one direction"
    many, *_ = dict(activation_rank(made, torch.randn(64, 1, 8, 8), torch.zeros(64))).values()
    assert many is not None and 13 < many <= 16, "as many as the 16 units of the layer, nearly"


@pytest.mark.slow
@pytest.mark.parametrize("model", [("model=pk",), ("model=sw_mlp",), ("model=mlp",), ("model=sw_mlp", "width=4096")])
def test_five_percent_of_a_run_that_is_not_tiny(tmp_path: Path, model: tuple[str, ...]) -> None:
    settings = ("data=fashion_mnist_10k", "epochs=10", "threads=1", "tracking=none", "device=cpu", *model, ALL[0])
    made = finished(directory(tmp_path, *settings))
    probed, trained = (sum(row["seconds"] for row in rows) for rows in (made.probes(), made.rows()))
    assert 0 < probed < 0.05 * trained


def test_the_command_takes_them_and_refuses_others_by_name(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *DIGITS, "model=s_mixer", *SIZES, f"data_dir={digits}", f"runs_dir={tmp_path}", "epochs=1"]
    assert main([*words, "probes=[spectrum]"]) == 0
    run = Path(capsys.readouterr().out.strip()).parent
    row = json.loads((run / "probes.jsonl").read_text())
    assert row["epoch"] == 1 and {key.split("/")[0] for key in row} == {
        *("epoch", "seconds", "spectrum_largest", "spectrum_smallest")
    }
    layers = {key.partition("/")[2] for key in row if "/" in key}
    assert layers == set(mixing_maps(chosen([run], None)[0][0].network()))
    assert main([*words, "probes=[sparsity,spectrums]"]) == 2
    assert "the nearest to spectrums is spectrum" in capsys.readouterr().err
