"""The benchmark of packs measures what it says; nothing here asserts a speed."""

import dataclasses

import pytest
import torch

from mixersweep.bench import Case, measure
from mixersweep.bench import pack as module
from mixersweep.bench.pack import COPIED, EagerStep, PackStep, StackedDense, Sweep, copy, pack_cases, step_cases
from tests.bench.test_bench import Clock

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a moment."""
    from mixersweep.compose import config_of
    from mixersweep.runs import solve

    settings = ["connections=1000", "depth=1", "batch_size=64", "threads=1"]
    monkeypatch.setattr(module, "run_of", lambda model: solve(config_of([f"model={model}", *settings])))
    module._pack_steps.cache_clear()


def test_a_step_is_that_of_the_engines(small: None) -> None:
    """Number after number, over the end of an epoch too, and the same pack for all that it is compared with."""
    step = PackStep("s_mixer", 2)(CPU)
    first = [step() for _ in range(3)]
    assert first == [0, 1, 2]
    assert PackStep("s_mixer", 2)(CPU) is step
    assert PackStep("s_mixer", 1)(CPU) is not step
    eager = EagerStep("s_mixer")(CPU)
    steps = -(-9000 // 64)
    assert [eager() for _ in range(steps + 2)] == [*range(steps), 0, 1]


def test_what_bounds_a_step_is_scaled_to_its_work() -> None:
    cases = {case.benchmark: case for case in step_cases("s_mixer", 4)}
    a = module.run_of("s_mixer").architecture
    assert cases["pack_vs_one_after_another"].scale == 4
    dense = cases["pack_vs_stacked_dense"].reference
    assert isinstance(dense, StackedDense)
    assert dense.multiply_adds == pytest.approx(3 * 4 * 128 * a.mixing_layers * a.connections, rel=0.01)
    told = cases["pack_vs_multiply_adds"].extra
    assert told["multiply_adds"] == 3 * 4 * 128 * a.flops_per_image / 2
    assert dense.multiply_adds < told["multiply_adds"] < 2 * dense.multiply_adds  # with stem and head
    assert cases["pack_vs_stacked_dense"].scale == told["multiply_adds"] / dense.multiply_adds
    alone = {case.benchmark: case for case in step_cases("s_mixer", 1)}["pack_vs_bytes"]
    assert told["bytes"] == 4 * alone.extra["bytes"]
    assert cases["pack_vs_bytes"].scale == pytest.approx(told["bytes"] / (2 * COPIED))


def test_stacked_dense_layers_are_those_of_each_alone() -> None:
    torch.manual_seed(0)
    made = StackedDense(3, 5, 2, 4)(CPU)()
    assert isinstance(made, list)
    assert [tuple(each.shape) for each in made] == [(3, 4, 5)] * 4 + [(3, 5, 5)] * 2
    assert all(bool((each != 0).any()) for each in made)


def test_a_copy_is_one_of_as_many_bytes_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED", 1000)
    made = copy(CPU)()
    assert isinstance(made, torch.Tensor)
    assert made.numel() * made.element_size() == 1000


def test_a_command_is_timed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    record = measure(Case("test", {}, clock.taking(4.0), clock.taking(40.0), once=True), CPU)
    assert (record["ratio"], record["repetitions"], clock.now) == (10, 1, 44)


@pytest.mark.parametrize("way", ["one_after_another", "processes"])
def test_a_sweep_is_the_command(way: str) -> None:
    case = next(case for case in pack_cases(False) if case.benchmark == f"sweep_as_pack_vs_{way}")
    assert case.once
    small = ("connections=1000", "depth=1", "batch_size=1500", "epochs=1", "threads=1")
    for sweep in (case.subject, case.reference):
        assert isinstance(sweep, Sweep)
        dataclasses.replace(sweep, how=(*sweep.how, *small))(CPU)()


def test_a_sweep_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="no such setting"):
        Sweep(2, 1, ("widht=3",))(CPU)()
