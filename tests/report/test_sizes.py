"""Sizes that a budget leaves unequal are named, a line for each pair; runs under other budgets are not mixed."""

import io
from pathlib import Path

import numpy as np
import pytest

from mixersweep.report.answer import answer
from mixersweep.report.build import build
from mixersweep.report.sheets import sheets
from mixersweep.report.sizes import largest_differences, relative_differences, residual, size_caveats
from mixersweep.report.terminal import show
from tests.report.sweeps import WIDTHS, write_search, write_sweep

GROUPS = ["model.head=signed_groups", "depth=2"]
ONE = {"width": 650, "connections_real": 33150.0, "mixing_parameters": 3590, "flops_per_image": 316_900}
OTHER = {"width": 650, "connections_real": 16575.0, "mixing_parameters": 66_300, "flops_per_image": 155_348}


def level(model: str, width: int, seed: int) -> float:
    return 0.8


def test_the_largest_difference_comes_first_and_what_is_within_5_percent_is_not_told() -> None:
    found = relative_differences(ONE, OTHER)
    assert list(found) == ["mixing weights", "FLOPs", "connections really there", "width"]
    assert found["mixing weights"] == pytest.approx(66_300 / 3590 - 1)
    assert found == relative_differences(OTHER, ONE)
    assert found["width"] == 0
    near = {**OTHER, "flops_per_image": 160_000, "mixing_parameters": 69_000}
    assert largest_differences([(OTHER, near), (ONE, OTHER)]) == found
    assert size_caveats("a", "b", [(OTHER, near)]) == []
    assert size_caveats("a", "b", [(ONE, OTHER)]) == [
        "a and b differ in size at equal target width, by up to: mixing weights 18.5 times, FLOPs 2.04 times, "
        "connections really there 2 times"
    ]


def test_a_claim_says_in_its_own_line_in_what_sizes_differ(tmp_path: Path) -> None:
    """In each form that the answer has; a claim between networks of equal sizes says nothing."""

    def effect(model: str, width: int, seed: int) -> float:
        return 0.5 + 0.2 * (model == "sw_mlp") + 0.1 * (model == "rp_s_mixer") + 0.4 * np.log2(width / 900)

    write_sweep(tmp_path / "runs", effect, seeds=(0, 1, 2))
    write_search(tmp_path / "runs")
    made = build([tmp_path / "runs"], out=tmp_path / "out")
    (main,) = made.all_statistics
    shown = io.StringIO()
    show(made, "width", "accuracy", shown)
    terminal = " ".join(shown.getvalue().split())
    rows = {cell.cell[:2]: cell.rows[0] for cell in main.cells}
    ratio = max(rows["sw_mlp", w]["mixing_parameters"] / rows["s_mixer", w]["mixing_parameters"] for w in WIDTHS)
    of_pair = f"points; sizes differ by up to mixing weights {ratio:.3g} times"
    weights = [rows["s_mixer", width]["mixing_parameters"] for width in WIDTHS]
    of_trend = f"; what else changes with the width: mixing weights {max(weights) / min(weights):.3g} times"
    assert made.page is not None
    for text in (made.answer, terminal, made.page.read_text(), made.markdown, made.latex.replace("\\%", "%")):
        assert text.count(of_pair) == 2 and of_trend in text
    (better,) = (line for line in answer(main).structure.lines if line.startswith("rp_s_mixer and s_mixer"))
    assert "rp_s_mixer is better" in better and "sizes differ" not in better
    sheet = next(sheet for sheet in sheets(main) if sheet.name == "pairs")
    assert [row["sizes"]["mixing weights"] > 0.05 for row in sheet.rows] == [False, True, True]
    assert "equal" in sheet.texts[0]


def test_equal_by_the_formula_is_told_of_and_equal_in_fact_is_not(tmp_path: Path) -> None:
    models = ("pk", "sw_mlp")
    said = {}
    for count, connections, widths in (("formula", 8192, (315,)), ("real", 16384, (308, 360))):
        settings = [*GROUPS, f"count={count}", f"connections={connections}"]
        place = tmp_path / count
        untied = ["model.tied=false", "model.skip_layer=always"]
        write_sweep(place, level, models=models[:1], widths=widths, seeds=(0, 1), settings=[*settings, *untied])
        write_sweep(place, level, models=models[1:], widths=widths, seeds=(0, 1), settings=settings)
        (main,) = build([place]).all_statistics
        said[count] = [text for text in main.warnings if "differ in size at equal target width" in text]
        if count == "real":
            assert main.residual[0] < 0.02
            assert main.comparison.name == (
                "fashion_mnist_10k, 16,384 connections a layer with first layer and skip, depth 2"
            )
    assert "connections really there" in said["formula"][0]
    assert "connections" not in said["real"][0]


def test_a_residual_is_from_what_the_budget_fixed() -> None:
    row = {"width": 100, "width_target": 100, "connections": 50, "connections_target": 50, "flops_per_image": 1010}
    assert residual(row) == 0
    assert residual({**row, "flops_target": 1000}) == pytest.approx(0.01)
    assert residual({**row, "connections_real": 49, "connections_real_target": 50}) == pytest.approx(0.02)


def test_runs_under_different_readings_of_one_number_are_compared_where_they_are_one_network(tmp_path: Path) -> None:
    """An SW-MLP of 16,384 connections is the same run by the formula and in fact; a Mixer is not."""
    for count in ("formula", "real"):
        settings = [*GROUPS, f"count={count}", "connections=16384"]
        write_sweep(tmp_path, level, models=("s_mixer",), widths=(360,), seeds=(0, 1), settings=settings)
        write_sweep(tmp_path, level, models=("sw_mlp",), widths=(2048,), seeds=(0, 1), settings=settings)
    found = build([tmp_path]).all_statistics
    targets = {one.comparison.target: set(one.comparison.variants) for one in found}
    assert targets == {
        "connections_target": {"s_mixer", "sw_mlp"},
        "connections_real_target": {"s_mixer", "sw_mlp"},
    }
