"""Sparsity measures on known weights, Proposition 3.3 on problems with known minima, and the verb."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mixersweep.analysis import proposition
from mixersweep.analysis.proposition import (
    Problem,
    Ridge,
    Unproven,
    denoising,
    hoyer,
    judge,
    l1_over_l2,
    lasso,
    mse,
    train_factors,
)
from mixersweep.analysis.sparsity import measures
from mixersweep.cli import main
from mixersweep.data import load
from mixersweep.layers import PermutedKronecker, SparseWeights, draw_mask


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


def whitened(tokens: int, channels: int, seed: int = 0) -> tuple[Problem, np.ndarray]:
    """A problem whose inputs have the identity as second moment, and the best B without a penalty."""
    m = tokens * channels
    generator = np.random.default_rng(seed)
    x = np.sqrt(m) * np.eye(m)
    b = generator.standard_normal((m, m))

    def images(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(m, channels, tokens).transpose(0, 2, 1)

    return Problem(images(x), images(x @ b.T)), b


def test_the_lasso_of_white_inputs_is_a_soft_threshold() -> None:
    problem, b = whitened(3, 2)
    found, objective, bound = lasso(problem, 0.3)
    assert found == pytest.approx(np.sign(b) * np.maximum(np.abs(b) - 0.3, 0), abs=1e-5)
    assert 0 <= objective - bound <= 1e-8
    assert objective == pytest.approx(mse(problem, found) + 0.3 * np.abs(found).sum())


def test_the_ridge_of_white_inputs_shrinks() -> None:
    problem, b = whitened(3, 2)
    ridge = Ridge(problem)
    assert ridge.at(0.5) == pytest.approx(b / 1.5)
    assert ridge.loss(0.5) == pytest.approx(mse(problem, b / 1.5)) and ridge.norm(0.5) == pytest.approx(
        np.linalg.norm(b / 1.5)
    )
    matrix, objective, bound = ridge.unsquared(0.7)  # b · max(0, 1 - λ/|b|), the group's soft threshold
    assert matrix == pytest.approx(b * (1 - 0.7 / np.linalg.norm(b)))
    assert objective == pytest.approx(bound, abs=1e-8)
    assert np.all(ridge.unsquared(2 * np.linalg.norm(b))[0] == 0)


def test_factors_of_white_inputs_find_the_best_rank_one_matrix() -> None:
    """min |B* - V⊗W|²/2 + λ|V||W| is the soft threshold of the largest singular value of B*, rearranged."""
    problem, b = whitened(3, 2)
    arranged = b.reshape(2, 3, 2, 3).transpose(0, 2, 1, 3).reshape(4, 9)
    values = np.linalg.svd(arranged, compute_uv=False)
    strength = 0.4
    wanted = (np.sum(values**2) - values[0] ** 2) / 2 + strength * values[0] - strength**2 / 2
    for seed in range(3):
        v, w, objective = train_factors(problem, strength, seed)
        assert objective == pytest.approx(wanted, rel=1e-8)
        assert np.linalg.norm(v) == pytest.approx(np.linalg.norm(w), rel=1e-4), "the penalty balances the factors"
        assert mse(problem, np.kron(v, w)) + strength / 2 * (np.sum(v**2) + np.sum(w**2)) == pytest.approx(objective)


def test_with_one_token_and_one_channel_the_bound_is_an_equality() -> None:
    x = np.array([1.0, 2.0, -1.0]).reshape(3, 1, 1)
    problem = Problem(x, 1.5 * x)
    _, _, objective = train_factors(problem, 0.2, 0)
    _, lower, _ = lasso(problem, 0.2)
    assert objective == pytest.approx(lower, abs=1e-9)
    assert objective == pytest.approx(0.2 * 1.5 - 0.2**2 / 4)  # curvature 2: λb - λ²/(2·2)


def test_the_proposition_holds_on_images_and_its_bounds_are_in_order() -> None:
    images, _ = load("fashion_mnist_10k", Path())
    summary, rows = judge(range(2), images.images, lambdas=(0.01, 0.2), sizes=(4, 5))
    assert summary["largest_duality_gap"] <= 1e-8 and summary["points"] == 4
    for row in rows:
        assert row["l1_bound"] <= row["l2_bound"] + 1e-8 <= row["objective"] + 2e-8
        assert row["objective"] == pytest.approx(row["rank_one_bound"], rel=1e-7)
        assert row["hoyer_l2"] < row["hoyer_l1"]
    assert summary["per_lambda"][0]["hoyer_factors_minus_l1_interval"] is not None
    assert "of 2 λ" in summary["answer"]


def test_dense_models_are_compared_at_the_same_training_loss() -> None:
    images, _ = load("fashion_mnist_10k", Path())
    problem = denoising(0, images.images, 3, 3, 200)
    ridge, wanted = Ridge(problem), 0.7 * mse(problem, np.zeros((9, 9)))
    found = ridge.at(proposition.bisected(ridge.loss, wanted, 1e-9, 1e6))
    assert mse(problem, found) == pytest.approx(wanted, rel=1e-6)


def test_a_point_below_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = load("fashion_mnist_10k", Path())
    real = proposition.train_factors
    monkeypatch.setattr(proposition, "train_factors", lambda *a: (*real(*a)[:2], 1e-3))
    with pytest.raises(Unproven, match=r"proposition 3\.3, seed 0"):
        judge([0], images.images, lambdas=(0.1,), sizes=(3, 3))


def test_the_verb(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--where", "model=s_mixer", "--lambdas", "2", "--seeds", "2", "--out", str(tmp_path)]
    assert main(["analyze", "sparsity", str(runs), *arguments]) == 0
    assert "proposition 3.3 holds" in capsys.readouterr().err
    found = json.loads((tmp_path / "sparsity.json").read_text())
    assert len(found["layers"]) == 3 * 3 * 4 and len(found["proposition"]["rows"]) == 4
    (fresh,) = [row for row in found["groups"] if row["epoch"] == 0]
    assert 0.1 < fresh["hoyer"] < 0.3 and fresh["hoyer_change"] == 0
    (last,) = [row for row in found["groups"] if row["epoch"] == 2]
    assert last["hoyer_change"] == pytest.approx(last["hoyer"] - fresh["hoyer"])
    assert last["hoyer_change_interval"][0] < last["hoyer_change"] < last["hoyer_change_interval"][1]
    assert (tmp_path / "sparsity.png").exists()
