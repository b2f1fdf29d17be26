"""The study of Proposition 3.3 on problems with known minima, and as a script."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixersweep.data import load
from scripts.studies import proposition_3_3 as study
from scripts.studies.proposition_3_3 import (
    Problem,
    Ridge,
    Unproven,
    bisected,
    denoising,
    judge,
    lasso,
    mse,
    train_factors,
)


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
    found = ridge.at(bisected(ridge.loss, wanted, 1e-9, 1e6))
    assert mse(problem, found) == pytest.approx(wanted, rel=1e-6)


def test_a_point_below_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = load("fashion_mnist_10k", Path())
    real = study.train_factors
    monkeypatch.setattr(study, "train_factors", lambda *a: (*real(*a)[:2], 1e-3))
    with pytest.raises(Unproven, match=r"proposition 3\.3, seed 0"):
        judge([0], images.images, lambdas=(0.1,), sizes=(3, 3))


def test_the_script(tmp_path: Path) -> None:
    arguments = ["--lambdas", "2", "--seeds", "2", "--side", "4", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, study.__file__, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "proposition 3.3 holds" in done.stderr
    assert done.stdout == f"{tmp_path / 'proposition_3_3.json'}\n"
    assert len(json.loads((tmp_path / "proposition_3_3.json").read_text())["rows"]) == 4
    assert (tmp_path / "proposition_3_3.svg").exists()


def test_the_script_refuses_what_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["--seeds", "1"])
    assert "--seeds 1: at least 1 and 2" in capsys.readouterr().err
