"""CKA: its invariances, its oracle, and the verb on trained runs."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mixersweep.analysis.similarity import centred_gram, cka, compare, products, similarities
from mixersweep.analysis.subjects import Features, chosen
from mixersweep.cli import main
from mixersweep.data.splits import open_splits


def gaussians(*shapes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def of_all(features: list[torch.Tensor]) -> np.ndarray:
    columns = range(len(features))
    return cka(products(features).numpy(), columns, columns)


def dense_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimator as it is printed (Song et al. 2012, eq 5)."""
    n = len(x)
    k, l_ = x @ x.T, y @ y.T
    k = k - k.diag().diag()
    l_ = l_ - l_.diag().diag()
    one = torch.ones(n, dtype=x.dtype)
    first = torch.trace(k @ l_)
    second = (one @ k @ one) * (one @ l_ @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ l_ @ one)
    return float((first + second - third) / (n * (n - 3)))


@pytest.mark.parametrize("n", [4, 5, 32])
def test_one_batch_is_the_dense_formula(n: int) -> None:
    x, y = gaussians((n, 7), (n, 3))
    y = y + x[:, :3] ** 2
    assert float(products([x, y])[0, 1]) == pytest.approx(dense_hsic(x, y), rel=1e-9, abs=1e-12)


def test_several_batches_are_a_direct_sum() -> None:
    x, y = gaussians((40, 7), (40, 3))
    y = y + x[:, :3]
    batches = [slice(0, 16), slice(16, 32), slice(32, 40)]
    sums = sum(products([x[b], y[b]]).numpy() for b in batches)
    upper = sum(dense_hsic(x[b], y[b]) for b in batches)
    lower = np.sqrt(sum(dense_hsic(x[b], x[b]) for b in batches) * sum(dense_hsic(y[b], y[b]) for b in batches))
    assert cka(sums, [0], [1])[0, 0] == pytest.approx(upper / lower, rel=1e-9)


def test_invariant_under_orthogonal_transforms_scaling_and_shifts_but_not_under_linear_maps() -> None:
    x, y, square = gaussians((64, 10), (64, 10), (10, 10))
    y = x + 0.5 * y
    q = torch.linalg.qr(square).Q
    table = of_all([x, y, y @ q, -3 * y, y + 7, y @ square])
    assert table[0, 1] == pytest.approx(table[0, 2], abs=1e-10) and 0.3 < table[0, 1] < 0.99
    assert table[0, 3] == pytest.approx(table[0, 1], abs=1e-10)
    assert table[0, 4] == pytest.approx(table[0, 1], abs=1e-10)
    assert abs(table[0, 5] - table[0, 1]) > 1e-3
    assert np.diag(table) == pytest.approx(1, abs=1e-12)


def test_independent_gaussians_have_none_on_average() -> None:
    values = [of_all(gaussians((64, 20), (64, 20), seed=seed))[0, 1] for seed in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5 + 1e-3
    biased = []  # the estimator that is not corrected is far from 0 here
    for seed in range(5):
        x, y = (g - g.mean(0) for g in gaussians((64, 20), (64, 20), seed=seed))
        k, l_ = x @ x.T, y @ y.T
        biased.append(float((k * l_).sum() / (k.norm() * l_.norm())))
    assert np.mean(biased) > 0.15


def test_centred_grams_have_rows_that_sum_to_zero() -> None:
    (x,) = gaussians((9, 3))
    gram = centred_gram(x).view(9, 9)
    assert gram.sum(0).abs().max() < 1e-9 and gram.diag().abs().max() == 0


def test_features_are_what_is_added_to_the_skips(runs: Path) -> None:
    for where in ("model=s_mixer and seed=0", "connections=216 and seed=0"):
        subject = chosen([runs], where)[0][0]
        network = subject.network()
        images = next(iter(open_splits(subject.config, torch.device("cpu")).test.batches(50, None, None)))[0]
        with Features(network) as features:
            found = features.of(images)
        assert len(features.layers) == 4 and all(len(layer) == 50 for layer in found)
        with torch.no_grad():  # the stream rebuilt from stem and branches alone gives the same logits
            if subject.config.model.name == "s_mixer":
                x = network.embedding(images)
                first = network.blocks[0].skip(x).transpose(0, 1).flatten(1) + found[0] + found[1]
                x = first + found[2] + found[3]
                logits = network.head(network.norm(x.view(50, 6, 6)).mean(1))
            else:
                x = network.entries(network.embedding(images)) + sum(layer.t() for layer in found)
                logits = network.head(network.entries.pool(network.norm(x)))
            assert torch.allclose(logits, network(images), atol=1e-5)


def test_a_run_with_itself_is_one_and_symmetric(runs: Path) -> None:
    subjects, _ = chosen([runs], "model=s_mixer and seed=0")
    table = similarities(subjects, torch.device("cpu"), untrained=False)
    made = compare(table, subjects, subjects)
    assert np.diag(made.matrix) == pytest.approx(1, abs=1e-6)
    assert made.matrix == pytest.approx(made.matrix.T, abs=1e-12)
    assert made.diagonal_mean == pytest.approx(1, abs=1e-6) and made.off_diagonal_mean is not None
    assert made.off_diagonal_mean < 0.999


def test_the_verb_compares_groups_with_baselines_and_intervals(runs: Path, tmp_path: Path) -> None:
    assert main(["analyze", "cka", str(runs), "--reference", "model=s_mixer", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "cka.json").read_text())
    assert {"runs", "layers", "matrix", "diagonal_mean", "off_diagonal_mean", "interval", "baselines"} <= set(found)
    assert set(found["baselines"]) == {"untrained", "seeds", "dense"}
    assert len(found["comparisons"]) == 3
    assert found["diagonal_mean"] == max(one["diagonal_mean"] for one in found["comparisons"])
    for one in found["comparisons"]:
        assert np.shape(one["matrix"]) == (4, 4) == (len(one["layers"][0]), len(one["layers"][1]))
        assert one["interval"][0] < one["diagonal_mean"] < one["interval"][1]
        assert np.trace(one["matrix"]) / 4 == pytest.approx(one["diagonal_mean"])
        assert one["baselines"]["seeds"]["diagonal_mean"] < 1 and one["reasons"] == {}
    assert found["optimum"]["candidates"]["1/C"]["density"] == pytest.approx(1 / 6, rel=0.05)
    low, high = found["optimum"]["inverse_density_interval"]
    assert 1 <= low <= found["optimum"]["inverse_density"] <= high <= 18
    for name in ("cka.csv", "cka.md", "cka.svg", "cka.png"):
        assert (tmp_path / name).stat().st_size > 200


def test_the_mean_over_pairs_is_that_of_single_comparisons(runs: Path) -> None:
    subjects, _ = chosen([runs], "model=s_mixer or connections=216")
    mixers = [s for s in subjects if s.config.model.name == "s_mixer"][:2]
    mlps = [s for s in subjects if s.config.model.name == "sw_mlp"]
    table = similarities([*mixers, *mlps], torch.device("cpu"), untrained=False)
    paired = compare(table, mixers, mlps)
    assert paired.paired
    single = [compare(table, [m], [s]).diagonal_mean for m, s in zip(mixers, mlps, strict=True)]
    assert paired.diagonal_mean == pytest.approx(np.mean([x for x in single if x is not None]))
    crossed = compare(table, mixers, [*mlps, *mlps])
    every = [compare(table, [m], [s]).diagonal_mean for m, s in itertools.product(mixers, mlps)]
    assert crossed.diagonal_mean == pytest.approx(np.mean([x for x in every if x is not None]))


def test_what_the_runs_do_not_hold_is_null_with_a_reason(runs: Path, tmp_path: Path) -> None:
    places = [str(s.path) for s in chosen([runs], "seed=0 and connections in [216,72]")[0]]
    assert main(["analyze", "cka", *places, "--no-figure", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "cka.json").read_text())
    assert found["baselines"]["seeds"] is None and found["baselines"]["dense"] is None
    assert set(found["reasons"]) >= {"seeds", "dense", "optimum"}
    assert not (tmp_path / "cka.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--where", "seed=0 and model=s_mixer"], "one run"),
        (["--reference", "model=mlp"], "none of the"),
        (["--reference", "model=sw_mlp"], "takes one group"),
        (["--where", "width=1"], "no completed run"),
    ],
)
def test_mistakes_are_one_line(
    runs: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "cka", str(runs), "--out", str(tmp_path), *arguments]) in (1, 2)
    assert said in capsys.readouterr().err
