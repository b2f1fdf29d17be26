"""Why nothing is claimed: learning rates that were not searched, unequal tuning, unequal seeds, runs that diverged."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from mixersweep.report.answer import answer
from mixersweep.report.claims import Claim, Pair, Trend
from mixersweep.report.recipe import comparisons
from mixersweep.report.sheets import sheets
from mixersweep.report.statistics import Statistics, statistics
from tests.report.simulated import CURVE, SEARCH_SEEDS, Row, Sweep, Truth, fill, report_of, two_models

WIDTHS = (426, 520, 572, 644)
SEEDS = 5


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("sweep"), two_models(WIDTHS), SEEDS)


def better_and_wider(row: Row) -> float:
    """S-Mixers 4 points above SW-MLPs, both 6 points better for a doubling of the width."""
    return 0.8 + 0.04 * (row["model"] == "s_mixer") + 0.06 * np.log2(row["width"] / 644)


def reported(sweep: Sweep, level: Callable[[Row], float] = better_and_wider, rng: int = 0) -> list[Row]:
    rows = [[dict(row) for row in own] for own in sweep.rows]
    fill(rows, Truth(level, images=2000), np.random.default_rng(rng))
    return [row for own in rows for row in own]


def searched(sweep: Sweep, curve: dict[float, float], model: str, width: int | None = None) -> list[Row]:
    """Runs that chose, of one model, at one width or all."""
    return [
        sweep.run(row, seed, rate, accuracy)
        for row in sweep.first
        if row["model"] == model and width in (None, row["width_target"])
        for rate, accuracy in curve.items()
        for seed in SEARCH_SEEDS
    ]


def lines(found: Statistics) -> list[str]:
    """The verdicts as they are read."""
    return [line for question in answer(found).questions for line in question.lines]


def whys(claim: Claim) -> list[str]:
    return [str(reason) for reason in claim.against]


def claims(found: Statistics) -> tuple[Pair, dict[str, Trend]]:
    (pair,) = found.pairs
    return pair, {trend.variant: trend for trend in found.trends}


def test_searched_inside_the_grid_everything_is_claimed(sweep: Sweep) -> None:
    found = report_of([*reported(sweep), *sweep.search])
    pair, trends = claims(found)
    assert pair.is_decided and all(trend.is_decided for trend in trends.values())
    assert found.claims == 3
    assert [line.partition(", ")[0] for line in lines(found)] == [
        "s_mixer (tall): wider is better",
        "sw_mlp: wider is better",
        "s_mixer and sw_mlp: s_mixer is better",
    ]
    assert answer(found).first == []
    (sheet,) = (sheet for sheet in sheets(found) if sheet.name == "rates")
    assert [row["best"] for row in sheet.rows] == ["inside"] * 8
    assert sheet.texts[0][-2] == "0.0316: 70.0, 0.1: 80.0, 0.316: 75.0"


def test_without_a_search_no_trend_is_claimed_and_a_difference_says_so(sweep: Sweep) -> None:
    found = report_of(reported(sweep))
    pair, trends = claims(found)
    assert pair.is_decided and found.claims == 1
    assert {tuple(whys(trend)) for trend in trends.values()} == {("no learning rate was searched",)}
    assert answer(found).first == ["learning rates were not searched"]
    assert lines(found)[0] == "s_mixer (tall): not claimed, no learning rate was searched"


@pytest.mark.parametrize(("edge", "curve"), [
    ("lowest", {0.1: 0.8, 0.316: 0.7, 1.0: 0.6}),
    ("highest", {0.01: 0.6, 0.0316: 0.7, 0.1: 0.8}),
])  # fmt: skip
def test_a_best_rate_at_an_edge_bars_the_trend_and_what_it_may_have_lost(
    sweep: Sweep, edge: str, curve: dict[float, float]
) -> None:
    inside = [row for row in sweep.search if (row["model"], row["width_target"]) != ("sw_mlp", 520)]
    found = report_of([*reported(sweep), *inside, *searched(sweep, curve, "sw_mlp", 520)])
    pair, trends = claims(found)
    assert trends["s_mixer"].is_decided
    assert whys(trends["sw_mlp"]) == [f"the best learning rate is the {edge} tried at width 520"]
    assert pair.is_shown and not pair.is_decided
    assert whys(pair) == [f"sw_mlp's best learning rate is the {edge} tried at width 520"]
    assert f"s_mixer and sw_mlp: not claimed, {pair.against[0]}" in lines(found)
    (sheet,) = (sheet for sheet in sheets(found) if sheet.name == "rates")
    assert [row["best"] for row in sheet.rows].count(f"the {edge} tried") == 1
    turned = report_of([*reported(sweep, lambda row: 1.6 - better_and_wider(row)), *inside,
                        *searched(sweep, curve, "sw_mlp", 520)])  # fmt: skip
    assert claims(turned)[0].is_decided  # the better one may only have lost by its rate


def test_a_rate_beyond_which_runs_diverge_is_inside_the_grid(sweep: Sweep) -> None:
    inside = [row for row in sweep.search if row["optim.lr"] < 0.3]
    gone = [sweep.run(row, seed, 0.316, None, "diverged") for row in sweep.first for seed in SEARCH_SEEDS]
    found = report_of([*reported(sweep), *inside], gone)
    assert all(trend.is_decided for trend in claims(found)[1].values())
    assert "diverged" not in str(answer(found))  # but for the search
    (sheet,) = (sheet for sheet in sheets(found) if sheet.name == "rates")
    assert sheet.texts[0][-2:] == ["0.0316: 70.0, 0.1: 80.0, 0.316: 0.0 (2 diverged)", "inside"]


def test_seeds_of_a_search_of_which_runs_diverged_are_not_reported(sweep: Sweep) -> None:
    """One rate of two diverged: seen by its completed runs alone, a search seed was tried at a single rate."""
    kept = [
        row for row in sweep.search if row["optim.lr"] < 0.2 and (row["model"] == "s_mixer" or row["optim.lr"] < 0.1)
    ]
    gone = [
        sweep.run(row, seed, 0.1, None, "diverged")
        for row in sweep.first
        if row["model"] == "sw_mlp"
        for seed in SEARCH_SEEDS
    ]
    rows = [{**row, "optim.lr": 0.0316 if row["model"] == "sw_mlp" else 0.1} for row in reported(sweep)]
    found = report_of([*rows, *kept], gone)
    assert found.comparison.search_seeds == ["100", "101"]
    assert all(len(runs) == SEEDS for runs in found.comparison.cells.values())


def test_a_search_over_fewer_epochs_is_none_of_the_reported_length(sweep: Sweep) -> None:
    short = [{**row, "settings": {**row["settings"], "epochs": 4}, "epochs": 4} for row in sweep.search]
    rows = reported(sweep)
    main, apart = comparisons([*rows, *short])
    assert (main.search_epochs, apart.search_epochs) == ([4], [])
    (found, _) = statistics([main, apart], read=lambda row: None, draws=500)
    why = "no learning rate was searched over the full training length, only over 4 epochs"
    assert {tuple(whys(trend)) for trend in found.trends} == {(why,)}


def test_what_was_drawn_once_for_all_seeds_is_named(sweep: Sweep) -> None:
    rows = [{**row, "settings": {**row["settings"], "seeds.structure": 7}} for row in [*reported(sweep), *sweep.search]]
    once = "all seeds of a model share one draw of structure: the answer holds for that draw alone"
    assert answer(report_of(rows)).first == [once]
    assert answer(report_of([*reported(sweep), *sweep.search])).first == []


def test_rates_searched_for_the_better_model_alone_bar_the_difference(sweep: Sweep) -> None:
    alone = [row for row in sweep.search if row["model"] == "s_mixer"]
    found = report_of([*reported(sweep), *alone])
    assert whys(claims(found)[0]) == ["learning rates were searched only for s_mixer"]
    assert answer(found).first == ["learning rates of sw_mlp were not searched"]
    other = [row for row in sweep.search if row["model"] == "sw_mlp"]
    assert claims(report_of([*reported(sweep), *other]))[0].is_decided


def test_rates_that_the_reported_seeds_chose_bar_a_difference_from_a_model_with_one(sweep: Sweep) -> None:
    rows = reported(sweep)
    more = [
        {**row, "optim.lr": rate, "name": f"{row['name']} at {rate}", "validation_accuracy": 0.1}
        for row in rows
        if row["model"] == "s_mixer"
        for rate in CURVE
        if rate != 0.1
    ]
    found = report_of([*rows, *more])
    pair, trends = claims(found)
    assert not pair.is_decided
    assert whys(pair) == ["the reported seeds chose the learning rates of s_mixer, and not equally for both models"]
    assert trends["s_mixer"].is_decided
    assert answer(found).first == [
        "learning rates of sw_mlp were not searched",
        "the reported seeds chose the learning rates of s_mixer",
    ]


def test_seeds_that_not_all_widths_have_are_in_no_trend(sweep: Sweep) -> None:
    """A narrow width with bad seeds and a wide one with good ones: each width has two of its own, and three shared."""

    def of_the_seed(row: Row) -> float:
        return 0.8

    rows = reported(sweep, of_the_seed)
    for row in rows:
        bad = row["seed"] >= 3
        row["right"] = row["right"] & (np.arange(len(row["right"])) % 5 > 0 if bad else True)
        row["test_accuracy"] = float(row["right"].mean())
    kept = [row for row in rows if row["seed"] < 3 or row["width_target"] < 500]
    found = report_of([*kept, *sweep.search])
    for trend in claims(found)[1].values():
        assert (trend.slope.seeds, trend.slope.runs, trend.seeds_left_out) == (3, 12, 2)
        assert abs(trend.rise.value) < 0.02 and not trend.is_shown
    assert all("without 2 seeds that some widths lack" in line for line in lines(found)[:2])
    apart = [row for row in rows if (row["seed"] < 2) == (row["width_target"] < 500)]
    barred = claims(report_of([*apart, *sweep.search]))[1]
    assert {tuple(whys(trend)) for trend in barred.values()} == {("its widths have fewer than two seeds in common",)}


def test_runs_that_diverged_bar_what_they_may_have_flattered(sweep: Sweep) -> None:
    rows = reported(sweep)
    gone = [(row["model"], row["width_target"], row["seed"]) for row in rows
            if row["model"] == "s_mixer" and row["seed"] == 4 and row["width_target"] > 550]  # fmt: skip
    kept = [row for row in rows if (row["model"], row["width_target"], row["seed"]) not in gone]
    lost = [
        sweep.run(row, 4, 0.1, None, "diverged")
        for row in sweep.first
        if (row["model"], row["width_target"], 4) in gone
    ]
    found = report_of([*kept, *sweep.search], lost)
    pair, trends = claims(found)
    assert pair.is_shown and whys(pair) == ["2 of 20 runs of s_mixer diverged"]
    assert whys(trends["s_mixer"]) == ["2 of 20 runs of s_mixer diverged, most of them where it does best"]
    assert trends["sw_mlp"].is_decided
    assert "2 of 20 runs of s_mixer diverged" in answer(found).first
    turned = reported(sweep, lambda row: 1.6 - better_and_wider(row))
    kept = [row for row in turned if (row["model"], row["width_target"], row["seed"]) not in gone]
    found = report_of([*kept, *sweep.search], lost)
    assert all(claim.is_decided for claim in (*found.pairs, *found.trends))  # they flatter the worse
    assert "2 of 20 runs of s_mixer diverged" in answer(found).first


def test_a_slope_is_quoted_over_the_range_that_was_measured(sweep: Sweep) -> None:
    found = report_of([*reported(sweep), *sweep.search])
    trend = claims(found)[1]["sw_mlp"]
    assert 0 < trend.doublings < 1
    assert trend.rise.value == pytest.approx(trend.slope.value * np.log2(trend.widths[-1] / trend.widths[0]))
    (sheet,) = (sheet for sheet in sheets(found) if sheet.name == "trends")
    assert "points per doubling" not in [column.header for column in sheet.columns]
    assert f"from {trend.widths[0]} to {trend.widths[-1]}" in lines(found)[1]
    assert "doubling" not in str(answer(found))


def test_p_says_where_the_draws_end(sweep: Sweep) -> None:
    found = report_of([*reported(sweep), *sweep.search], draws=999)
    pair = found.pairs[0]
    assert pair.difference.at_floor and pair.difference.smallest_p == 2 / 1000
    assert pair.p_holm == pytest.approx(3 * 2 / 1000)
    assert answer(found).numbers.texts[-1][3] == "≤ 0.006"
    (sheet,) = (sheet for sheet in sheets(found) if sheet.name == "pairs")
    assert "≤ 0.006" in sheet.texts[0]
    null = report_of([*reported(sweep, lambda row: 0.8), *sweep.search], draws=999)
    assert "≤" not in str(answer(null))
    assert lines(null)[-1].startswith("s_mixer and sw_mlp: no difference shown, its interval contains 0; ")
    assert all(re.search(r"; detectable from \d+\.\d points$", line) for line in lines(null))
