"""Sparsity measures on known weights, and the verb."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mixersweep.cli import main
from mixersweep.layers import PermutedKronecker, SparseWeights, draw_mask
from mixersweep.layers.sparsity import hoyer, l1_over_l2, measures


def test_indices_of_known_weights() -> None:
    assert hoyer(np.ones(9)) == pytest.approx(0) and l1_over_l2(np.ones(9)) == pytest.approx(1)
    assert hoyer(np.eye(3)[0]) == pytest.approx(1)
    normal = np.random.default_rng(0).standard_normal(200_000)
    assert hoyer(normal) == pytest.approx(1 - math.sqrt(2 / math.pi), abs=2e-3)
    assert l1_over_l2(normal) == pytest.approx(math.sqrt(2 / math.pi), abs=2e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_measures_are_those_of_the_written_out_matrix(tied: bool) -> None:
    layer = PermutedKronecker(4, 5, 3, tied=tied)
    layer.initialize(torch.Generator().manual_seed(0))
    dense = layer.to_dense().detach().double().numpy()
    found = measures(layer)
    assert found["hoyer_matrix"] == pytest.approx(hoyer(dense), rel=1e-6)
    assert found["nuclear_norm"] == pytest.approx(np.linalg.svd(dense, compute_uv=False).sum(), rel=1e-6)
    connections = dense[dense != 0]
    assert found["l1_over_l2"] == pytest.approx(l1_over_l2(connections), rel=1e-6)
    root = np.sqrt((connections**2).mean())
    assert found["below_0.5"] == pytest.approx((np.abs(connections) < 0.5 * root).mean())


def test_a_sparse_map_without_weights_has_no_indices() -> None:
    layer = SparseWeights(5, 5, draw_mask(5, 5, 5, "exact", torch.Generator().manual_seed(0)))
    assert math.isnan(measures(layer)["hoyer"]) and measures(layer)["hoyer_matrix"] is None


def test_the_verb(runs: Path, tmp_path: Path) -> None:
    assert main(["analyze", "sparsity", str(runs), "--where", "model=s_mixer", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "sparsity.json").read_text())
    assert len(found["layers"]) == 3 * 3 * 4
    (fresh,) = [row for row in found["groups"] if row["epoch"] == 0]
    assert 0.1 < fresh["hoyer"] < 0.3 and fresh["hoyer_change"] == 0
    (last,) = [row for row in found["groups"] if row["epoch"] == 2]
    assert last["hoyer_change"] == pytest.approx(last["hoyer"] - fresh["hoyer"])
    assert last["hoyer_change_interval"][0] < last["hoyer_change"] < last["hoyer_change_interval"][1]
    assert (tmp_path / "sparsity.png").exists()
