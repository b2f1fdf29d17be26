"""What a budget leaves unequal is told of, a line a pair of models; runs under different budgets are apart."""

from pathlib import Path

import pytest

from mixersweep.report.build import build
from mixersweep.report.sizes import apart, largest, residual, told
from tests.report.sweeps import write_sweep

GROUPS = ["model.head=signed_groups", "depth=2"]
ONE = {"width": 650, "connections_real": 33150.0, "mixing_parameters": 3590, "flops_per_image": 316_900}
OTHER = {"width": 650, "connections_real": 16575.0, "mixing_parameters": 66_300, "flops_per_image": 155_348}


def level(model: str, width: int, seed: int) -> float:
    return 0.8


def test_the_largest_difference_comes_first_and_what_is_within_5_percent_is_not_told() -> None:
    found = apart(ONE, OTHER)
    assert list(found) == ["mixing weights", "FLOPs", "connections really there", "width"]
    assert found["mixing weights"] == pytest.approx(66_300 / 3590 - 1)
    assert found == apart(OTHER, ONE)
    assert found["width"] == 0
    near = {**OTHER, "flops_per_image": 160_000, "mixing_parameters": 69_000}
    assert largest([(OTHER, near), (ONE, OTHER)]) == found
    assert told("a", "b", [(OTHER, near)]) == []
    assert told("a", "b", [(ONE, OTHER)]) == [
        "a and b differ at equal target width by up to: mixing weights 18.5 times, FLOPs 2.04 times, "
        "connections really there 2 times"
    ]


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
        said[count] = [text for text in main.warnings if "differ at equal target width" in text]
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
