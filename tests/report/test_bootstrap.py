"""The intervals and tests, against scipy and against simulated sweeps of which the truth is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mixersweep.report import bootstrap
from mixersweep.report.bootstrap import LEVEL, CellEffect, Estimate, draws_for, estimate, variances
from mixersweep.report.cell_effect import estimate_cell_effect, residual_contrasts
from mixersweep.report.exact import holm, sign_flip_p

SWEEPS = 500
ERROR = (LEVEL * (1 - LEVEL) / SWEEPS) ** 0.5


def test_over_seeds_alone_it_is_students_t() -> None:
    generator = np.random.default_rng(0)
    for n in (3, 5, 20):
        accuracy = generator.normal(0.8, 0.01, n)
        (found,) = estimate(np.full(n, 1 / n), accuracy, [0] * n, range(n))
        expected = stats.t.interval(0.95, n - 1, accuracy.mean(), stats.sem(accuracy))
        width = expected[1] - expected[0]
        assert found.value == pytest.approx(accuracy.mean())
        # resampled seeds, not a formula: some per cent of the width apart for few seeds
        assert np.abs(np.subtract(found.over_seeds, expected)).max() < 0.12 * width
        assert found.over_seeds_and_images is None


def test_with_many_seeds_it_is_the_bootstrap_of_scipy() -> None:
    accuracy = np.random.default_rng(1).gamma(2.0, 0.01, 60)
    (found,) = estimate(np.full(60, 1 / 60), accuracy, [0] * 60, range(60))
    for method in ("percentile", "BCa"):
        expected = stats.bootstrap((accuracy,), np.mean, n_resamples=9999, method=method, rng=2).confidence_interval
        width = expected.high - expected.low
        assert np.abs(np.subtract(found.over_seeds, expected)).max() < 0.1 * width, method


def test_over_images_alone_it_is_the_bootstrap_of_scipy() -> None:
    """Two identical seeds have no spread: what is left is the test set's."""
    correct = np.random.default_rng(3).random(500) < 0.8
    (found,) = estimate([0.5, 0.5], [correct.mean()] * 2, [0, 0], [0, 1], np.stack([correct, correct]))
    expected = stats.bootstrap((correct * 1.0,), np.mean, method="percentile", rng=4).confidence_interval
    assert found.over_seeds == pytest.approx((correct.mean(), correct.mean()))
    assert np.abs(np.subtract(found.over_seeds_and_images, expected)).max() < 0.004
    assert found.images == 500


def test_one_seed_has_no_interval() -> None:
    correct = np.ones((2, 50), dtype=bool)
    correct[1, :20] = False
    (found,) = estimate([1, -1], [1.0, 0.6], [0, 1], [0, 0], correct)
    assert found == Estimate(pytest.approx(0.4), seeds=1, runs=2, images=50)


def test_equal_networks_do_not_differ() -> None:
    correct = np.tile(np.random.default_rng(5).random(300) < 0.7, (6, 1))
    (found,) = estimate([1 / 3] * 3 + [-1 / 3] * 3, correct.mean(1), [0] * 3 + [1] * 3, [0, 1, 2] * 2, correct)
    assert found.value == 0
    assert found.p == 1
    assert found.interval == (0, 0)


def test_the_same_table_gives_the_same_numbers_whatever_the_global_random_state() -> None:
    correct = np.random.default_rng(6).random((6, 200)) < 0.7
    arguments = ([1 / 3] * 3 + [-1 / 3] * 3, correct.mean(1), [0] * 3 + [1] * 3, [0, 1, 2] * 2, correct)
    np.random.seed(0)  # noqa: NPY002
    first = estimate(*arguments)
    np.random.seed(1)  # noqa: NPY002
    assert estimate(*arguments) == first


@pytest.mark.parametrize("held", [1, 5000, 2**24])
def test_contrasts_of_many_runs_are_each_as_if_alone(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is computed together, and where seeds are missing or occur twice in a cell."""
    monkeypatch.setattr(bootstrap, "_HELD", held)
    correct = np.random.default_rng(7).random((11, 1300)) < 0.7
    cells = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    seeds = np.array([2, 0, 1, 0, 1, 1, 2, 1, 2, 0, 3])
    contrasts = np.random.default_rng(8).normal(size=(4, 11))
    contrasts[1, 3:7] = contrasts[2, [0, 7]] = contrasts[3, 1:3] = contrasts[3, 3:] = 0  # the last has no interval
    accuracy = correct.mean(1)
    found = variances(contrasts, accuracy, cells, seeds, correct)
    assert found == pytest.approx([written_out(row, accuracy, cells, seeds, correct) for row in contrasts], nan_ok=True)
    assert np.isnan(found).tolist() == [False, False, False, True]
    together = estimate(contrasts, accuracy, cells, seeds, correct, draws=500)
    for row, one in zip(contrasts, together, strict=True):
        (alone,) = estimate(row, accuracy, cells, seeds, correct, draws=500)
        assert (one.interval or ()) == pytest.approx(alone.interval or (), rel=1e-5)
        assert (one.seeds, one.runs, one.value) == (alone.seeds, alone.runs, pytest.approx(alone.value))


def written_out(
    weights: np.ndarray, accuracy: np.ndarray, cells: np.ndarray, seeds: np.ndarray, correct: np.ndarray
) -> float:
    """The variance of a contrast as the module's text has it, run by run."""
    own = dict.fromkeys(seeds[weights != 0], 0.0)
    residuals = {seed: np.zeros(correct.shape[1]) for seed in own}
    for cell in set(cells[weights != 0]):
        runs = [run for run in np.flatnonzero(cells == cell) if weights[run]]
        if len(runs) < 2:
            return float("nan")
        for run in runs:
            factor = weights[run] * (len(runs) / (len(runs) - 1)) ** 0.5
            own[seeds[run]] += factor * (accuracy[run] - accuracy[runs].mean())
            residuals[seeds[run]] += factor * (correct[run] - correct[runs].mean(0))
    n = correct.shape[1]
    of_images = (weights @ correct).var(ddof=1) / n
    of_single = sum(((row - row.mean()) ** 2).sum() for row in residuals.values()) / (n * (n - 1))
    return float(len(own) * np.var(list(own.values())) + max(0.0, 1 - of_single / of_images) * of_images)


def simulated(effect: float, *, widths: int, seeds: int, images: int, spread: float, rng: int) -> list[Estimate]:
    """The pooled difference of two models in ``SWEEPS`` sweeps, each with new seeds *and* new test images.

    A prediction is right with a probability that depends on the image (alike for both models, and for each apart), on
    the run, and on the model by ``effect``: the truth that the intervals are to cover.
    """
    generator = np.random.default_rng(rng)
    shape = (SWEEPS, 2, widths, seeds)
    image = generator.uniform(-0.12, 0.12, (SWEEPS, 1, 1, 1, images))
    own = generator.uniform(-0.06, 0.06, (SWEEPS, 2, 1, 1, images))
    run = np.clip(generator.normal(0, spread, (*shape, 1)), -0.04, 0.04)
    model = np.array([effect / 2, -effect / 2])[None, :, None, None, None]
    correct = generator.random((*shape, images), dtype=np.float32) < 0.72 + image + own + run + model
    runs = int(np.prod(shape))
    correct = correct.reshape(runs, images)
    cells = np.repeat(np.arange(runs // seeds), seeds)
    sign = np.where(np.arange(runs) // (widths * seeds) % 2 == 0, 1.0, -1.0) / (widths * seeds)
    weights = np.zeros((SWEEPS, runs))
    for sweep, own_runs in enumerate(np.arange(runs).reshape(SWEEPS, -1)):
        weights[sweep, own_runs] = sign[own_runs]
    found: list[Estimate] = []
    for start in range(0, SWEEPS, 100):
        part = slice(start, start + 100)
        used = np.flatnonzero(np.abs(weights[part]).sum(0))
        labels = np.tile(np.arange(seeds), runs // seeds)[used]
        inner = weights[part][:, used]
        found += estimate(inner, correct[used].mean(1), cells[used], labels, correct[used], draws=4000)
    return found


@pytest.mark.parametrize(
    ("widths", "seeds", "images", "spread"), [(1, 3, 300, 0.02), (1, 5, 300, 0.01), (3, 5, 200, 0.015), (3, 5, 200, 0)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(widths: int, seeds: int, images: int, spread: float) -> None:
    effect = 0.02
    found = simulated(effect, widths=widths, seeds=seeds, images=images, spread=spread, rng=widths * 10 + seeds)
    covered = np.mean([e.over_seeds_and_images[0] <= effect <= e.over_seeds_and_images[1] for e in found])
    assert LEVEL - 3 * ERROR < covered < 1 - ERROR
    if spread == 0 and widths == 3:  # most of the chance is in the images: seeds alone cover far less
        alone = np.mean([e.over_seeds[0] <= effect <= e.over_seeds[1] for e in found])
        assert alone < covered


def test_nothing_is_found_where_nothing_is_and_something_where_something_is() -> None:
    null = simulated(0.0, widths=3, seeds=5, images=200, spread=0.015, rng=7)
    false = np.mean([e.p <= 0.05 for e in null])
    assert 0.01 < false < 0.05 + 3 * ERROR
    large = simulated(0.08, widths=3, seeds=5, images=200, spread=0.015, rng=8)
    found = np.mean([e.p <= 0.05 and e.value > 0 for e in large])
    assert found > 0.85
    assert all((e.p <= 0.05) == (not e.interval[0] <= 0 <= e.interval[1]) for e in null if not 0.045 < e.p < 0.055)


def test_holm_keeps_the_chance_of_any_false_positive() -> None:
    """Three models without a difference, each pair tested: rarely is any pair decided."""
    generator = np.random.default_rng(9)
    seeds, images, models, sweeps = 5, 150, 3, 300
    rejected = 0
    pairs = list(itertools.combinations(range(models), 2))
    for _ in range(sweeps // 50):
        image = generator.uniform(-0.15, 0.15, (50, 1, 1, images))
        run = np.clip(generator.normal(0, 0.02, (50, models, seeds, 1)), -0.05, 0.05)
        correct = (generator.random((50, models, seeds, images)) < 0.75 + image + run).reshape(-1, images)
        cells = np.repeat(np.arange(50 * models), seeds)
        weights = np.zeros((50 * len(pairs), len(correct)))
        for sweep, (number, (one, other)) in itertools.product(range(50), enumerate(pairs)):
            weights[sweep * 3 + number] = ((cells == sweep * 3 + one) * 1.0 - (cells == sweep * 3 + other)) / seeds
        found = estimate(weights, correct.mean(1), cells, np.tile(np.arange(seeds), 50 * models), correct, draws=2000)
        for sweep in range(50):
            rejected += min(holm([e.p for e in found[3 * sweep : 3 * sweep + 3]])) <= 0.05
    assert rejected / sweeps < 0.05 + 3 * (0.05 * 0.95 / sweeps) ** 0.5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16])
def test_sign_flips_are_scipys(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    p, smallest = sign_flip_p(list(differences))
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf if n < 17 else 9999
    )
    assert p == pytest.approx(expected.pvalue)
    assert smallest == 2.0 ** (1 - n)
    assert sign_flip_p([1.0] * n)[0] == smallest


def test_many_sign_flips_are_drawn() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    p, smallest = sign_flip_p(list(differences))
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=20000, rng=1)
    assert p == pytest.approx(expected.pvalue, abs=0.01)
    assert smallest < 1e-4
    assert sign_flip_p(list(differences)) == (p, smallest)


@pytest.mark.parametrize("widths", [(100, 200), (100, 150, 400), (426, 480, 532, 610), (426, 480, 532, 610, 650, 2580)])
def test_a_smooth_curve_through_the_widths_leaves_no_residual(widths: tuple[int, ...]) -> None:
    contrasts = residual_contrasts(widths)
    degree = 2 if len(widths) > 3 else 1
    assert contrasts.shape == (max(0, len(widths) - degree - 1), len(widths))
    x = np.log2(widths)
    curve = 0.7 + 0.1 * x - 0.02 * x**degree
    assert contrasts @ curve == pytest.approx(np.zeros(len(contrasts)), abs=1e-12)
    assert contrasts @ contrasts.T == pytest.approx(np.eye(len(contrasts)))


@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_the_effect_of_cells_is_told_from_the_spread_over_seeds(spread: float) -> None:
    """Six lines of five widths and five seeds, which differ by seed and cell; a parabola is no effect of cells."""
    generator = np.random.default_rng(10)
    lines, widths, seeds = 6, (100, 150, 200, 300, 500), 5
    x = np.log2(widths)
    cells = np.repeat(np.arange(lines * len(widths)), seeds)
    labels = [str(seed) for seed in np.tile(np.arange(seeds), lines * len(widths))]
    inside = residual_contrasts(widths)
    rows = np.array([np.where(cells // len(widths) == line, np.tile(np.repeat(r, seeds), lines), 0) / seeds
                     for line in range(lines) for r in inside])  # fmt: skip
    found = []
    for _ in range(200):
        means = 0.8 + 0.02 * x - 0.01 * (x - 7.5) ** 2 + generator.normal(0, spread, (lines, len(widths)))
        accuracy = (
            means[..., None] + generator.normal(0, 0.01, seeds) + generator.normal(0, 0.005, (*means.shape, seeds))
        )
        effect = estimate_cell_effect(rows, accuracy.ravel(), cells, labels, None)
        assert effect is not None and effect.freedom == lines * 2
        explained = variances(rows, accuracy.ravel(), cells, labels)
        found.append(effect.variance)
    expected = 12 / 11 * (spread**2 + explained.mean()) - explained.mean()  # one degree of freedom is taken off
    if spread:
        assert np.mean(found) == pytest.approx(expected, rel=0.15)
    assert np.mean(found) < spread**2 * 1.3 + 0.5 * 0.005**2 / seeds


def test_too_few_widths_estimate_no_effect_of_cells() -> None:
    accuracy = np.random.default_rng(11).normal(0.8, 0.01, 15)
    rows = np.repeat(residual_contrasts((100, 200, 400)), 5, axis=1) / 5
    assert estimate_cell_effect(rows, accuracy, np.repeat(range(3), 5), ["a", "b", "c", "d", "e"] * 3, None) is None


@pytest.mark.parametrize("freedom", [2, 10])
def test_an_effect_of_cells_widens_what_goes_over_cells_by_students_t(freedom: int) -> None:
    accuracy, cells, seeds = [0.8] * 3 + [0.7] * 3, [0] * 3 + [1] * 3, [0, 1, 2] * 2
    weights = [[1 / 3] * 3 + [-1 / 3] * 3] * 2
    effect = CellEffect(0.02**2, freedom)
    with_it, without = estimate(weights, accuracy, cells, seeds, cell_effects=[effect, None])
    half = stats.t.ppf(0.975, freedom) * 0.02 * 2**0.5
    assert with_it.interval == pytest.approx((0.1 - half, 0.1 + half), abs=0.06 * half)
    assert without.interval == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("claims", [1, 25, 300])
def test_however_many_claims_there_are_the_draws_can_decide(claims: int) -> None:
    draws = draws_for(claims)
    assert draws >= 10_000
    assert claims * 2 / (draws + 1) <= 0.005
    (found,) = estimate([0.5, 0.5], [0.8, 0.81], [0, 0], [0, 1], draws=draws)
    assert found.smallest_p == 2 / (draws + 1)
