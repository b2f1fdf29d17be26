"""``effective``, ``cost`` and ``landscape`` through the command, and runs that are unlike each other."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mixersweep.analysis import landscape
from mixersweep.analysis.cost import masked_dense_bytes, stored_bytes
from mixersweep.analysis.subjects import chosen, groups, mixing_maps
from mixersweep.cli import main
from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.layers import PermutedKronecker, SparseWeights, draw_mask
from mixersweep.models import build
from mixersweep.runs import solve


def test_groups_differ_in_more_than_seeds_and_say_in_what(runs: Path) -> None:
    found = groups(chosen([runs], None)[0])
    assert {label: len(inside) for label, inside in found.items()} == {
        "s_mixer connections=216 tokens=6 channels=6": 3,
        "sw_mlp connections=216": 2,
        "sw_mlp connections=1296": 2,
        "sw_mlp connections=72": 1,
    }


def test_a_network_of_every_kept_epoch(runs: Path) -> None:
    subject = chosen([runs], "model=s_mixer and seed=0")[0][0]
    assert subject.epochs == [0, 1, 2]
    weights = [next(subject.network(epoch).parameters()) for epoch in subject.epochs]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    fresh = build(subject.config, subject.directory.run.architecture)
    assert torch.equal(next(fresh.parameters()), weights[0])
    assert torch.equal(next(subject.network().parameters()), weights[2])
    with pytest.raises(UserError, match=r"not 7; there are 0, 1, 2 .*checkpoint\.keep=\[7\]"):
        subject.network(7)


def test_effective_exports_what_the_layers_are(runs: Path, tmp_path: Path) -> None:
    where = ["--where", "connections=216", "--out", str(tmp_path)]
    assert main(["analyze", "effective", str(runs), *where]) == 0
    rows = json.loads((tmp_path / "effective.json").read_text())["layers"]
    subjects = {s.config.model.name: s for s in chosen([runs], "connections=216 and seed=0")[0]}
    for row in rows:
        matrix = sp.load_npz(tmp_path / row["file"])
        layer = mixing_maps(subjects[row["network"].split("-")[0].split("~")[0]].network())[row["layer"]]
        dense = layer.to_dense().numpy()
        assert matrix.toarray() == pytest.approx(dense, abs=1e-7)
        assert row["connections"] == layer.connections == matrix.nnz
        assert row["rank"] == np.linalg.matrix_rank(dense.astype(np.float64), tol=1e-5)
        assert row["parameters"] == layer.weights and row["shared"] == layer.connections / layer.weights
    assert len(rows) == 8
    with (tmp_path / "effective.csv").open() as file:
        assert [line["rank"] for line in csv.DictReader(file)] == [str(row["rank"]) for row in rows]
    assert (tmp_path / "effective.svg").exists()


def test_effective_of_settings_needs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model=pk,monarch,mlp", "model.head=linear", "connections=64", "depth=1", "data=digits"]
    assert main(["analyze", "effective", *settings, "--no-figure", "--out", str(tmp_path)]) == 0
    assert "| pk-w16 |" in capsys.readouterr().err
    assert main(["analyze", "effective", "model=pk", "runs", "--out", str(tmp_path)]) == 2
    assert "not both" in capsys.readouterr().err
    assert main(["analyze", "effective", "modell=pk", "--out", str(tmp_path)]) == 2


def test_equal_weights_are_shown_alike() -> None:
    from mixersweep.analysis.effective import shared_weights

    tied, untied = (PermutedKronecker(3, 2, 2, tied=tied) for tied in (True, False))
    assert len(set(shared_weights(tied).tolist())) == 4 and len(set(shared_weights(untied).tolist())) == 12


@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cost_counts_and_measures(tmp_path: Path, digits: Path, measured: bool) -> None:
    settings = ["model=s_mixer,sw_mlp", "width=256", "connections=4096", "depth=1", "data=digits", "batch_size=300"]
    settings += [f"data_dir={digits}", "device=cpu"]
    flags = ["--device", "cpu", "--out", str(tmp_path), *([] if measured else ["--no-measure"])]
    assert main(["analyze", "cost", *settings, *flags]) == 0
    mixer, sparse = json.loads((tmp_path / "cost.json").read_text())["networks"]
    config = config_of([s.replace("s_mixer,sw_mlp", "sw_mlp") for s in settings])
    run = solve(config)
    network = build(config, run.architecture)
    assert sparse["weight_bytes"] == 4 * run.architecture.parameters == 4 * sum(p.numel() for p in network.parameters())
    assert sparse["masked_dense_bytes"] == 4 * (run.architecture.parameters + 2 * (2 * 256**2 - 4096))
    assert mixer["weight_bytes"] < sparse["weight_bytes"] and mixer["structure_bytes"] == 0
    assert stored_bytes(network)[1] == sparse["structure_bytes"] > 0
    assert masked_dense_bytes(network) == sparse["masked_dense_bytes"]
    for row in (mixer, sparse) if measured else ():
        assert row["seconds_per_epoch"] > 0 and row["timed_steps"] >= 5 and row["peak_memory_bytes"] >= 0
    assert (tmp_path / "cost.svg").exists()


def test_directions_are_as_large_as_the_weights() -> None:
    layer = SparseWeights(20, 12, draw_mask(12, 20, 60, "exact", torch.Generator().manual_seed(0)))
    layer.initialize(torch.Generator().manual_seed(1))
    whole, rows = (landscape.direction(layer, 5, how) for how in ("layer", "filter"))
    weight = layer.weight.detach()
    assert float(whole.norm()) == pytest.approx(float(weight.norm()), rel=1e-5)
    for row in range(12):
        here = layer.row_of == row
        if here.any():
            assert float(rows[here].norm()) == pytest.approx(float(weight[here].norm()), rel=1e-4)
    assert not torch.equal(whole, landscape.direction(layer, 6)) and torch.equal(whole, landscape.direction(layer, 5))


def test_perturbed_weights_come_back_bit_for_bit(runs: Path) -> None:
    network = chosen([runs], "model=s_mixer and seed=0")[0][0].network()
    layers = mixing_maps(network)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    directions = {name: landscape.direction(layer, 0) for name, layer in layers.items()}
    with landscape.perturbed(layers, directions, 0.3):
        for name, layer in layers.items():
            moved = float((layer.weight - before[name]).norm() / before[name].norm())
            assert moved == pytest.approx(0.3, rel=1e-4)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


def test_the_landscape_of_runs(runs: Path, tmp_path: Path) -> None:
    where = "model=s_mixer or connections=216"
    arguments = ["--draws", "2", "--layers", "--images", "300", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["analyze", "landscape", str(runs), "--where", where, *arguments]) == 0
    found = json.loads((tmp_path / "landscape.json").read_text())
    for subject in chosen([runs], where)[0]:
        mine = [row for row in found["rows"] if row["run"] == subject.name]
        still = [row for row in mine if row["epsilon"] == 0 and row["layer"] == "all"]
        assert still[0]["test_loss"] == pytest.approx(subject.record["test_loss"], rel=0.3)
        assert {row["layer"] for row in mine} == {"all", *mixing_maps(subject.network())}
    again = tmp_path / "again"
    arguments[-1] = str(again)
    assert main(["analyze", "landscape", str(runs), "--where", where, *arguments]) == 0
    assert (again / "landscape.json").read_bytes() == (tmp_path / "landscape.json").read_bytes()
    assert (again / "landscape.svg").read_bytes() == (tmp_path / "landscape.svg").read_bytes()


def test_analyze_without_a_verb_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["analyze"])
    assert ended.value.code == 2 and "VERB" in capsys.readouterr().err
