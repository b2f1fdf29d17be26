"""Singular values: hand-built matrices, dense decompositions, theory, and the verb on trained runs."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mixersweep.analysis.spectrum import spectra
from mixersweep.analysis.subjects import chosen, mixing_maps
from mixersweep.cli import main
from mixersweep.compose import config_of
from mixersweep.layers import (
    Commutation,
    Dense,
    Factors,
    PermutedKronecker,
    RandomPermutation,
    SparseMap,
    SparseWeights,
    draw_mask,
)
from mixersweep.layers.effective import (
    bulk_edge,
    expected_largest,
    extremes,
    extremes_of,
    extremes_of_product,
    singular_values,
    sparse_edge,
    to_sparse,
)
from mixersweep.models import build
from mixersweep.models.monarch import monarch_factors
from mixersweep.runs import solve


def drawn(layer: SparseMap, seed: int = 0) -> SparseMap:
    layer.initialize(torch.Generator().manual_seed(seed))
    return layer


def sparse(rows: int, columns: int, connections: int, seed: int = 0) -> SparseWeights:
    positions = draw_mask(rows, columns, connections, "exact", torch.Generator().manual_seed(seed))
    return drawn(SparseWeights(columns, rows, positions), seed)  # type: ignore[return-value]


def permuted(blocks: int, inputs: int, outputs: int, *, tied: bool) -> PermutedKronecker:
    generator = torch.Generator().manual_seed(1)
    before, after = (RandomPermutation(blocks * size, generator) for size in (inputs, outputs))
    return PermutedKronecker(blocks, inputs, outputs, tied=tied, before=before, after=after)


LAYERS = {
    "channel": PermutedKronecker(5, 4, 4),
    "token": PermutedKronecker(4, 5, 5, before=Commutation(5, 4), after=Commutation(4, 5)),
    "rectangular": PermutedKronecker(4, 7, 5, before=Commutation(7, 4), after=Commutation(4, 5)),
    "permuted": permuted(4, 7, 5, tied=True),
    "untied": permuted(4, 5, 7, tied=False),
    "sparse": sparse(30, 20, 90),
    "empty rows": sparse(30, 30, 20),
    "dense": Dense(6, 9),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_small_factors_have_the_spectrum_of_the_dense_matrix(name: str) -> None:
    layer = drawn(LAYERS[name])
    dense = layer.to_dense().detach().double()
    assert to_sparse(layer).toarray() == pytest.approx(dense.numpy(), abs=1e-7)
    assert to_sparse(layer).nnz == layer.connections
    assert singular_values(layer) == pytest.approx(torch.linalg.svdvals(dense).numpy(), abs=1e-6)
    found = extremes(layer)
    assert (found.largest, found.smallest) == pytest.approx((singular_values(layer)[0], singular_values(layer)[-1]))


def test_a_hand_built_kronecker_product() -> None:
    layer = permuted(3, 2, 2, tied=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 5.0]]))  # singular values 3√5 and √5
    assert singular_values(layer) == pytest.approx([45**0.5] * 3 + [5**0.5] * 3)
    assert extremes(layer).condition == pytest.approx(3)


@pytest.mark.parametrize(("rows", "columns", "connections"), [(300, 300, 3000), (400, 200, 3200), (200, 400, 3200)])
def test_lanczos_finds_both_ends(rows: int, columns: int, connections: int) -> None:
    layer = sparse(rows, columns, connections)
    found, dense = extremes_of(to_sparse(layer)), torch.linalg.svdvals(layer.to_dense().detach().double())
    assert found.largest == pytest.approx(float(dense[0]), rel=1e-8)
    assert found.smallest == pytest.approx(float(dense[-1]), rel=1e-4)


def test_an_empty_row_makes_the_smallest_zero_and_no_condition() -> None:
    found = extremes_of(to_sparse(sparse(200, 200, 300)))
    assert found.smallest == 0 and found.condition is None


@pytest.mark.parametrize("tied", [True, False])
def test_products_of_monarch_factors(tied: bool) -> None:
    right, left = (drawn(layer, n) for n, layer in enumerate(monarch_factors(7, 5, 4, tied=tied, bias=False)))
    assert isinstance(right, PermutedKronecker) and isinstance(left, PermutedKronecker)
    dense = torch.linalg.svdvals((left.to_dense() @ right.to_dense()).detach().double())
    found = extremes_of_product(left, right)
    assert (found.largest, found.smallest) == pytest.approx((float(dense[0]), float(dense[19])), rel=1e-5)


@pytest.mark.parametrize("gamma", [1, 2, 0.5])
def test_sparse_matrices_follow_theory(gamma: float) -> None:
    """Means over draws, at fan-in 32 and more: within 2% for γ = 1 and 2 and for a second matrix of a layer."""
    for fan_in in (32, 64):
        columns = 1024 if gamma < 2 else 512
        rows = int(gamma * columns)
        values = []
        for seed in range(3):
            layer = sparse(rows, columns, fan_in * rows, seed)
            values.append(extremes_of(to_sparse(layer)).largest)
        assert np.mean(values) == pytest.approx(expected_largest(layer), rel=0.02)


def test_the_edge_is_that_of_a_dense_matrix_at_density_one_and_grows_with_width_at_fixed_connections() -> None:
    assert sparse_edge(300, 200, 1.0) == pytest.approx(bulk_edge(300, 200))
    edges = [sparse_edge(m, m, 2**16 / m**2) for m in (256, 512, 1024, 2048)]
    assert all(later > sooner for sooner, later in pairwise(edges))
    assert sparse_edge(256, 256, 0.1) ** 2 == pytest.approx(4 * (1 + 3 * 0.9 / 25.6))  # paper, 4.3, at γ = 1


def test_mixers_come_closer_to_one_plus_root_gamma() -> None:
    off = []
    for size in (64, 256):
        ratios = []
        for seed in range(8):
            layer = drawn(PermutedKronecker(size, size, 2 * size), seed)
            ratios.append(extremes(layer).largest / bulk_edge(2, 1))
        off.append(abs(np.mean(ratios) - 1))
        assert all(abs(ratio - 1) < 0.05 for ratio in ratios)
    assert off[1] < off[0]


@pytest.mark.parametrize("rescale", ["init", "forward", "none"])
def test_expected_of_every_rescaling(rescale: str) -> None:
    positions = draw_mask(600, 600, 600 * 60, "exact", torch.Generator().manual_seed(0))
    layer = drawn(SparseWeights(600, 600, positions, rescale=rescale))  # type: ignore[arg-type]
    assert extremes(layer).largest == pytest.approx(expected_largest(layer), rel=0.04)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=mixer", "tokens=6", "channels=5"],
        ["model=rp_s_mixer", "tokens=6", "channels=5"],
        ["model=pk", "model.tied=false", "tokens=6", "channels=5"],
        ["model=monarch", "tokens=6", "channels=5"],
        ["model=monarch", "model.inner_activation=true", "tokens=6", "channels=5"],
        ["model=sw_mlp", "width=40", "connections=200"],
        ["model=hashed", "width=40", "connections=200"],
        ["model=block_diagonal", "width=30", "connections=150"],
        ["model=btt", "width=30", "connections=330"],
        ["model=butterfly", "width=30", "connections=300"],
        ["model=low_rank", "width=30", "connections=150"],
        ["model=mlp", "model.head=linear", "connections=900"],
        ["model=shallow_kronecker", "image_size=8"],
        ["model=shallow_monarch", "image_size=8"],
        ["model=golubeva_mlp", "width=80", "augment=none", "image_size=8", "depth=1"],
        ["model=s_fc", "model.alpha=1", "image_size=8", "depth=1"],
    ],
    ids=lambda overrides: overrides[0] + "-".join(overrides[1:2]),
)
def test_every_family_agrees_with_dense_matrices(overrides: list[str]) -> None:
    config = config_of(["data=digits", "depth=2", *overrides])
    network = build(config, solve(config).architecture)
    maps, found = mixing_maps(network), spectra(network)
    assert set(maps) <= set(found) and not any("head" in name or "embedding" in name for name in maps)
    for name, layer in maps.items():
        values = torch.linalg.svdvals(layer.to_dense().detach().double())
        assert found[name][0].largest == pytest.approx(float(values[0]), rel=1e-5)
        assert found[name][0].smallest == pytest.approx(float(values[-1]), abs=1e-5)
    products = set(found) - set(maps)
    multiplied = overrides[0] == "model=monarch" and "model.inner_activation=true" not in overrides
    factored = [name for name, module in network.named_modules() if isinstance(module, Factors)]
    assert bool(products) == (overrides[0].startswith("model=shallow") or multiplied or bool(factored))
    for name in factored:
        values = torch.linalg.svdvals(network.get_submodule(name).to_dense().detach().double())
        assert (found[name][0].largest, found[name][0].smallest) == pytest.approx(
            (float(values[0]), float(values[-1])), rel=1e-5
        )


def test_the_verb_has_every_kept_epoch(runs: Path, tmp_path: Path) -> None:
    where = "model=s_mixer or connections=216"
    assert main(["analyze", "spectrum", str(runs), "--where", where, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "spectrum.json").read_text())
    assert {"run", "layer", "epoch", "largest", "smallest", "condition", "theory"} <= set(rows[0])
    assert {row["epoch"] for row in rows} == {0, 1, 2}
    assert len(rows) == 5 * 4 * 3
    fresh = {row["largest"] for row in rows if row["epoch"] == 0}
    assert not fresh & {row["largest"] for row in rows if row["epoch"] == 2}
    subject = chosen([runs], "model=s_mixer and seed=1")[0][0]
    weight = torch.load(subject.directory.checkpoint, weights_only=True)["model"]["blocks.1.channel_mixing.0.weight"]
    of_run = [row for row in rows if row["run"] == subject.name and row["epoch"] == 2]
    (row,) = [row for row in of_run if row["layer"] == "blocks.1.channel_mixing.0"]
    assert row["largest"] == pytest.approx(float(torch.linalg.svdvals(weight.double())[0]))
    assert row["train_loss"] == subject.record["train_loss"]
    for name in ("spectrum.csv", "spectrum.md", "spectrum.svg", "spectrum.png"):
        assert (tmp_path / name).stat().st_size > 200
