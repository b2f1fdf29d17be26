"""Which runs are compared with which, and what the report says about them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.report import Report, build
from mixersweep.report.answer import answer
from mixersweep.report.caveats import loss_order
from mixersweep.report.sheets import sheets
from mixersweep.report.text import describe_difference
from mixersweep.report.verdicts import Finding
from mixersweep.runs import fingerprint, solve
from mixersweep.runs.experiment import experiment, numbers_version_of
from tests.report.sweeps import IMAGES, images, networks, write_search, write_sweep, write_trained
from tests.runs.synthetic import seeded, write_run

LEVELS = {"s_mixer": 0.8, "rp_s_mixer": 0.8, "sw_mlp": 0.6}


def known(model: str, width: int, seed: int) -> float:
    """S-Mixer and RP equal, SW-MLP 20 points below, all 8 points better for a doubling of the width."""
    return LEVELS[model] + 0.08 * np.log2(width / 1024)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, three widths, five seeds."""
    runs = tmp_path_factory.mktemp("swept")
    write_sweep(runs, known)
    write_search(runs)
    return runs


@pytest.fixture(scope="module")
def report(swept: Path) -> Report:
    return build([swept])


def test_known_effects_are_found_and_equal_models_are_not_told_apart(report: Report) -> None:
    (main,) = report.all_statistics
    pairs = {(pair.first, pair.second): pair for pair in main.pairs}
    for mixer in ("s_mixer", "rp_s_mixer"):
        pair = pairs[mixer, "sw_mlp"]
        low, high = pair.difference.over_seeds_and_images
        assert low < 0.2 < high
        assert pair.is_decided
        assert pair.p_holm > pair.difference.p
    equal = pairs["s_mixer", "rp_s_mixer"]
    assert not equal.is_decided
    assert equal.difference.interval[0] < 0 < equal.difference.interval[1]
    assert equal.pairs == 15
    assert equal.difference.seeds == 5
    assert equal.difference.images == IMAGES
    said = answer(main)
    assert [verdict.finding for verdict in said.structure.verdicts] == [
        Finding.NOT_SHOWN,
        Finding.BETTER,
        Finding.BETTER,
    ]
    assert [verdict.statement for verdict in said.structure.verdicts] == [
        "no difference shown",
        "s_mixer is better",
        "rp_s_mixer is better",
    ]
    assert str(said) == report.answer
    assert all(line in report.answer for question in said.questions for line in question.lines)


def test_a_pooled_difference_is_the_mean_of_the_paired_ones(report: Report) -> None:
    (main,) = report.all_statistics
    rows = {(row["model"], row["width_target"], row["seed"]): row["test_accuracy"] for row in main.comparison.rows}
    by_hand = [rows["s_mixer", w, s] - rows["sw_mlp", w, s] for w in (700, 900, 1024) for s in range(5)]
    pair = next(pair for pair in main.pairs if (pair.first, pair.second) == ("s_mixer", "sw_mlp"))
    assert pair.difference.value == pytest.approx(np.mean(by_hand))


def test_a_slope_is_least_squares_through_the_means(report: Report) -> None:
    (main,) = report.all_statistics
    for trend in main.trends:
        rows = [row for row in main.comparison.rows if row["model"] == trend.variant]
        fit = stats.linregress(np.log2([row["width"] for row in rows]), [row["test_accuracy"] for row in rows])
        assert trend.slope.value == pytest.approx(fit.slope)
        assert trend.slope.runs == 15
        low, high = trend.slope.over_seeds_and_images
        assert low < 0.08 < high
    assert {trend.variant: trend.branch for trend in main.trends} == {
        "s_mixer": "tall",
        "rp_s_mixer": "tall",
        "sw_mlp": None,
    }


def test_each_width_is_tested_by_t_and_by_sign_flips(report: Report) -> None:
    (main,) = report.all_statistics
    rows = {(row["model"], row["width_target"], row["seed"]): row["test_accuracy"] for row in main.comparison.rows}
    assert len(main.per_width) == 9
    for test in main.per_width:
        first = [rows[test.first, test.width, seed] for seed in range(5)]
        second = [rows[test.second, test.width, seed] for seed in range(5)]
        expected = stats.ttest_rel(first, second)
        assert test.p_t == pytest.approx(expected.pvalue)
        assert test.interval == pytest.approx(tuple(expected.confidence_interval()))
        assert test.p_sign is None  # of 5 seeds, sign flips never reach 0.05
    assert "cannot decide" not in report.markdown
    (sheet,) = (sheet for sheet in sheets(main) if sheet.name == "widths")
    assert "verdict" not in sheet.rows[0] and "p (sign flips)" not in [c.header for c in sheet.columns]


def test_the_same_runs_give_the_same_numbers_in_any_order(swept: Path, report: Report, tmp_path: Path) -> None:
    for path in sorted(swept.iterdir(), reverse=True):
        (tmp_path / path.name).symlink_to(path)
    assert build([tmp_path]).statistics["comparisons"] == report.statistics["comparisons"]
    again = build([swept, tmp_path])
    assert again.statistics["comparisons"] == report.statistics["comparisons"]
    assert "99 runs found a second time elsewhere" in again.statistics["runs"]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_sweep(tmp_path / "one", known, models=("s_mixer", "sw_mlp"), seeds=(0,))
    one = build([tmp_path / "one"])
    (main,) = one.all_statistics
    assert all(cell.accuracy.interval is None and cell.spread is None for cell in main.cells)
    assert all(trend.slope.interval is None for trend in main.trends)
    assert [pair.p_holm for pair in main.pairs] == [None]
    said = "one seed decides nothing, so there is no interval and no claim"
    assert answer(main).width.lines == [f"all 2 models: {said}"]
    assert answer(main).structure.lines == [f"s_mixer and sw_mlp: {said}"]
    assert answer(main).numbers.note == "One seed each: there is no interval and no p."


def test_six_seeds_are_enough_for_sign_flips(tmp_path: Path) -> None:
    write_sweep(tmp_path, known, models=("s_mixer", "sw_mlp"), widths=(1024,), seeds=range(6))
    (test,) = build([tmp_path]).all_statistics[0].per_width
    assert test.p_sign == 2**-5


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("epochs=5", "epochs", 5),
        ("optim.weight_decay=0.01", "optim.weight_decay", 0.01),
        ("augment=none", "augment.crop_padding", 0),
        ("depth=2", "depth", 2),
        ("model.head=linear", "model.head", "linear"),
        ("connections=2**15", None, None),
        ("batch_size=64", "batch_size", 64),
    ],
)
def test_what_differs_in_recipe_is_compared_apart(tmp_path: Path, setting: str, name: str, value: object) -> None:
    write_sweep(tmp_path, known, models=("s_mixer",), widths=(900, 1024), seeds=(0, 1))
    write_sweep(tmp_path / "more", known, models=("sw_mlp",), widths=(900,), seeds=(0, 1), settings=[setting])
    made = build([tmp_path, tmp_path / "more"])
    if name is None:  # what was the default before is the same experiment
        assert len(made.all_statistics) == 1
        return
    main, apart = made.all_statistics
    assert list(main.comparison.variants) == ["s_mixer"]
    assert list(apart.comparison.variants) == ["sw_mlp"]
    assert apart.comparison.differs[name][0] == value
    assert f"{name}=" in made.markdown


def test_variants_of_a_family_are_lines_of_their_own(tmp_path: Path) -> None:
    for tied in ("true", "false"):
        write_sweep(
            tmp_path, known_pk, models=("pk",), widths=(900, 1024), seeds=(0, 1), settings=[f"model.tied={tied}"]
        )
    (main,) = build([tmp_path]).all_statistics
    assert list(main.comparison.variants) == ["pk tied=false", "pk tied=true"]
    assert len(main.pairs) == 1


def known_pk(model: str, width: int, seed: int) -> float:
    return 0.8


def test_a_setting_may_name_lines_of_their_own(tmp_path: Path) -> None:
    """One family twice, with another structure each: two lines that are paired by seed, or else more seeds of one."""
    for structure in (1, 2):
        settings = [f"seeds.structure={structure}"]
        write_sweep(tmp_path, known, models=("sw_mlp",), widths=(900, 1024), seeds=(0, 1), settings=settings)
    (one,) = build([tmp_path]).all_statistics
    assert list(one.comparison.variants) == ["sw_mlp"]
    assert {len(cell.rows) for cell in one.cells} == {4}
    made = build([tmp_path], by=["seeds.structure"])
    (two,) = made.all_statistics
    assert list(two.comparison.variants) == ["sw_mlp seeds.structure=1", "sw_mlp seeds.structure=2"]
    (pair,) = two.pairs
    assert (pair.pairs, pair.difference.seeds) == (4, 2)
    assert "all seeds of a model share one draw of structure" in made.answer
    assert "--by seeds.structure" in made.command


def test_what_would_be_apart_may_name_lines_too(tmp_path: Path) -> None:
    for decay in ("0.001", "0.01"):
        settings = [f"optim.weight_decay={decay}"]
        write_sweep(tmp_path, known, models=("sw_mlp",), widths=(900, 1024), seeds=(0, 1), settings=settings)
    assert len(build([tmp_path]).all_statistics) == 2
    (main,) = build([tmp_path], by=["optim.weight_decay"]).all_statistics
    assert list(main.comparison.variants) == ["sw_mlp optim.weight_decay=0.001", "sw_mlp optim.weight_decay=0.01"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("seeds.structur", "no run has such a setting; the nearest is seeds.structure"),
        ("seed", "cannot separate lines, the runs of one line differ in it"),
        ("width", "cannot separate lines, the runs of one line differ in it"),
        ("data.name", "cannot separate lines, accuracies on different data are not compared"),
    ],
)
def test_what_makes_no_lines_is_refused(tmp_path: Path, name: str, said: str) -> None:
    write_sweep(tmp_path, known, models=("sw_mlp",), widths=(900,), seeds=(0, 1))
    with pytest.raises(UserError, match=f"--by {name}: {said}"):
        build([tmp_path], by=[name])


def test_the_learning_rate_with_most_seeds_is_compared_and_seeds_that_chose_it_are_not(tmp_path: Path) -> None:
    for lr, seeds in (("0.03", (100, 101)), ("0.1", (100, 101, 0, 1, 2)), ("0.3", (100, 101))):
        settings = [f"optim.lr={lr}"]
        write_sweep(tmp_path, known, models=("s_mixer", "sw_mlp"), widths=(900,), seeds=seeds, settings=settings)
    made = build([tmp_path])
    (main,) = made.all_statistics
    assert {row["seed"] for row in main.comparison.rows} == {0, 1, 2}
    assert {row["optim.lr"] for row in main.comparison.rows} == {0.1}
    assert main.comparison.search_seeds == ["100", "101"]
    assert len(main.comparison.searched) == 12
    assert any("seeds 100, 101 served to choose learning rates" in warning for warning in main.warnings)


def test_a_setting_that_only_one_of_two_comparisons_has_is_told_with_its_value(tmp_path: Path) -> None:
    """The optimisers here have different settings, and ``ema`` is null where it is not set."""
    adamw = ["optim=adamw", "optim.lr=0.01", "ema=0.9"]
    for settings, seeds in (([], (0, 1, 2)), (adamw, (0, 1))):
        write_sweep(tmp_path, known, models=("sw_mlp",), widths=(900,), seeds=seeds, settings=settings)
    other = build([tmp_path]).all_statistics[1].comparison
    for settings, seeds in (([], (0, 1, 2)), (adamw, (0, 1, 2, 3))):  # now the other is the main one
        write_sweep(tmp_path / "more", known, models=("sw_mlp",), widths=(900,), seeds=seeds, settings=settings)
    turned = build([tmp_path / "more"]).all_statistics[1].comparison
    assert set(describe_difference(other).split(", ")) >= {
        *("optim.name=adamw (not sgd)", "optim.momentum not set (but 0.9)", "optim.beta2=0.999 (not set)"),
        "ema=0.9 (not set)",
    }
    assert set(describe_difference(turned).split(", ")) >= {
        *("optim.name=sgd (not adamw)", "optim.momentum=0.9 (not set)", "optim.beta2 not set (but 0.999)"),
        "ema not set (but 0.9)",
    }


def test_one_seed_tried_at_one_width_is_still_compared(tmp_path: Path) -> None:
    write_sweep(tmp_path, known, models=("s_mixer",), widths=(900, 1024), seeds=(0, 1, 2))
    write_sweep(tmp_path, known, models=("s_mixer",), widths=(900,), seeds=(0,), settings=["optim.lr=0.3"])
    (main,) = build([tmp_path]).all_statistics
    assert len(main.comparison.rows) == 6
    assert main.comparison.search_seeds == []


def test_warnings_and_what_takes_part_in_no_claim(tmp_path: Path) -> None:
    settings = ["connections=2**12", "model.head=pool"]
    write_sweep(tmp_path, known, models=("s_mixer",), widths=(128, 256), seeds=(0, 1), settings=settings)
    write_sweep(tmp_path, known, models=("sw_mlp",), widths=(256, 4096), seeds=(0, 1), settings=[*settings])
    (main,) = build([tmp_path]).all_statistics
    text = "\n".join(main.warnings)
    assert "s_mixer: fewer channels than the 10 classes at width 128 (tall)" in text
    assert "more than a quarter" in text
    assert "sw_mlp: mean fan-in below 4 at width 4096: shown, but in no test or trend" in text
    assert [trend.variant for trend in main.trends] == ["s_mixer"]
    assert len(main.cells) == 4
    (pair,) = main.pairs
    assert pair.widths == [(256, "square")]


def test_where_all_heads_are_rank_limited_only_equal_ones_are_compared_and_no_trend_is_claimed(tmp_path: Path) -> None:
    def level(model: str, width: int, seed: int) -> float:
        return {"s_mixer": 0.4, "rp_s_mixer": 0.6, "sw_mlp": 0.8}[model] + 0.1 * (width > 400)

    settings = ["connections=2**14", "model.head=pool"]
    write_sweep(tmp_path, level, widths=(309, 426), settings=settings)  # 3 and 6 channels; 5 and 7 in MLPs
    write_search(tmp_path, widths=(309, 426), settings=settings)
    made = build([tmp_path])
    (main,) = made.all_statistics
    assert [(bool(trend.barred), trend.is_decided) for trend in main.trends] == [(True, False)] * 3
    claimed = {(pair.first, pair.second): pair.is_decided for pair in main.pairs}
    assert main.claims == sum(claimed.values()) == 1
    assert claimed["s_mixer", "rp_s_mixer"]
    said = answer(main)
    assert {verdict.statement for verdict in said.width.verdicts} == {"not claimed"}
    assert said.structure.lines[0].startswith("rp_s_mixer and s_mixer: rp_s_mixer is better, by ")
    assert any(
        "the readouts differ: 3 features against 5 features at width 309 (train both with" in text for text in said.rest
    )


@pytest.mark.parametrize("order", ["opposite", "equal", "few"])
def test_where_training_loss_orders_the_points_too_it_is_said(tmp_path: Path, order: str) -> None:
    widths = (700, 1024) if order == "few" else (700, 900, 1024)
    written = write_sweep(tmp_path, known, models=("s_mixer", "sw_mlp"), widths=widths, seeds=(0, 1))
    for path in written.values() if order == "equal" else ():
        record = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(record | {"train_loss": record["test_accuracy"]}))
    (main,) = build([tmp_path]).all_statistics
    found = [text for text in main.warnings if "rank correlation" in text]
    assert (
        found
        == [
            "of the 6 points, those of lower training loss have higher test accuracy (rank correlation −1.00): better "
            "training alone may explain the differences"
        ][: order == "opposite"]
    )
    assert loss_order(main.cells) == {"opposite": pytest.approx(-1), "equal": pytest.approx(1), "few": None}[order]


@pytest.mark.parametrize("is_of_the_head", [True, False])
def test_a_difference_that_rank_limited_heads_alone_show_is_not_claimed(tmp_path: Path, is_of_the_head: bool) -> None:
    def level(model: str, width: int, seed: int) -> float:
        return 0.6 + 0.2 * (model == "rp_s_mixer" and (width < 500 or not is_of_the_head))

    models, widths = ("s_mixer", "rp_s_mixer"), (309, 426, 520, 572, 644)
    settings = ["connections=2**14", "model.head=pool"]
    write_sweep(tmp_path, level, models=models, widths=widths, settings=settings)  # 3, 6 and then 10 channels and more
    made = build([tmp_path])
    (pair,) = made.all_statistics[0].pairs
    assert pair.clean is not None
    assert pair.is_shown
    assert pair.is_decided is not is_of_the_head
    (line,) = answer(made.all_statistics[0]).structure.lines
    if is_of_the_head:
        assert line == "s_mixer and rp_s_mixer: not claimed, only rank-limited heads show it"
    else:
        assert "without rank-limited heads" in line


def test_budget_parameters_compares_the_best_widths(tmp_path: Path) -> None:
    settings = ["budget=parameters", "weights=1024", "model.head=signed_groups"]

    def level(model: str, width: int, seed: int) -> float:
        return 0.8 if (model, width) in (("s_mixer", 1024), ("sw_mlp", 128)) else 0.6

    write_sweep(tmp_path, level, models=("s_mixer",), widths=(700, 1024), settings=settings)
    write_sweep(tmp_path, level, models=("sw_mlp",), widths=(64, 128), settings=settings)
    made = build([tmp_path])
    (pair,) = made.all_statistics[0].pairs
    assert pair.at_best == (1024, 128)
    assert pair.difference.value == pytest.approx(0, abs=0.05)
    assert "at the best width of each, chosen on validation of seeds 0 and 1 and tested on others" in made.answer
    assert (pair.chosen_on, pair.difference.seeds) == (["0", "1"], 3)
    assert made.all_statistics[0].per_width == []


def test_missing_or_foreign_predictions_leave_intervals_over_seeds(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path, known, models=("s_mixer",), widths=(900, 1024), seeds=(0, 1, 2))
    gone = paths["s_mixer", 900, 1] / "predictions.npz"
    kept = gone.read_bytes()
    for content in (None, kept[:100]):
        gone.unlink(missing_ok=True)
        if content:
            gone.write_bytes(content)
        (main,) = build([tmp_path]).all_statistics
        assert main.images is None
        assert all(cell.accuracy.over_seeds and not cell.accuracy.over_seeds_and_images for cell in main.cells)
        assert any("no readable predictions.npz" in warning for warning in main.warnings)
    labels = images(5)
    np.savez(gone, prediction=labels, label=labels, probability_of_label=np.ones(IMAGES, np.float32))
    (main,) = build([tmp_path]).all_statistics
    assert any("tested on other images" in warning for warning in main.warnings)


def test_unfinished_runs_are_counted_and_named(tmp_path: Path) -> None:
    first = networks(("s_mixer",), (900, 1024))
    labels = images(0)
    for run in first.values():
        for seed in (0, 1):
            write_trained(tmp_path, seeded(run, seed), np.arange(IMAGES) % 5 > 0, labels)
        write_run(tmp_path, seeded(run, 2), "diverged", epoch=1, error="train_loss is nan <in> epoch 2")
        write_run(tmp_path, seeded(run, 3), "planned")
    broken = write_run(tmp_path, seeded(run, 4))
    (broken / "result.json").write_text("{")
    made = build([tmp_path])
    assert made.table.states == {"completed": 4, "diverged": 2, "planned": 2, "broken": 1}
    for word in ("2 diverged", "2 planned", "1 broken", "train_loss is nan <in> epoch 2", "result.json cannot be read"):
        assert word in made.markdown
    assert len(made.tables["runs"]) == 9
    assert any(
        "2 runs of this comparison have failed, diverged" in warning for warning in made.all_statistics[0].warnings
    )


def test_the_version_of_the_numbers_is_told_from_the_fingerprint(tmp_path: Path) -> None:
    frozen = json.loads((Path(__file__).parents[1] / "runs" / "fingerprints.json").read_text())
    assert len(frozen) >= 20
    for entry in frozen[:20]:
        run = solve(config_of(entry["overrides"]))
        stored = {
            "config": dataclasses.asdict(run.config),
            "architecture": dataclasses.asdict(run.architecture),
            "fingerprint": fingerprint(run.config, run.architecture),
        }
        found = experiment(stored["config"])
        assert found == experiment(run.config)
        assert numbers_version_of(found, stored) == 1, entry["overrides"]
        assert numbers_version_of(found, {**stored, "fingerprint": "0" * 64}) is None


def test_runs_with_other_numbers_are_apart(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path, known, models=("s_mixer",), widths=(900, 1024), seeds=(0, 1))
    for name in ("planned.json", "result.json"):
        file = paths["s_mixer", 900, 0] / name
        stored = json.loads(file.read_text())
        file.write_text(json.dumps({**stored, "fingerprint": "ab" * 32}))
    made = build([tmp_path])
    assert [len(one.comparison.rows) for one in made.all_statistics] == [3, 1]
    assert made.all_statistics[1].comparison.differs == {"numbers_version": (None, 1)}
