"""The benchmarks measure what they say; nothing here asserts a speed."""

import json
import subprocess
import sys

import pytest
import torch

from mixersweep.bench import SUITES, Case, harness, measure
from mixersweep.bench.harness import peak_bytes
from mixersweep.bench.layers import MaskedDense, Nonzeros, SparseLayer, TimmBlock, gemm
from mixersweep.bench.step import Step

CPU = torch.device("cpu")


def allocate(megabytes: int) -> object:
    """Something to measure: so much memory, once."""
    return _Allocation(megabytes)


class _Allocation:
    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes

    def __call__(self, device: torch.device) -> object:
        kept = torch.ones(self.megabytes * 2**18, device=device)
        return lambda: kept.sum()


class Clock:
    """Stands still but for those who say how long they take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """Seconds, as ``time`` has them."""
        return self.now

    def taking(self, seconds: float) -> object:
        """To measure: what takes so long each time, but for the sixth, in which the machine stalls."""
        taken = []

        def run() -> None:
            taken.append(seconds if len(taken) != 5 else 100.0)
            self.now += taken[-1]

        return lambda device: run


def test_a_ratio_is_the_references_time_over_the_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    record = measure(Case("test", {"width": 3}, clock.taking(0.005), clock.taking(0.02), scale=2.0), CPU)
    assert record["benchmark"] == "test"
    assert (record["width"], record["mode"], record["repetitions"]) == (3, "eager", 10)
    assert record["subject_seconds"] == pytest.approx(0.005)
    assert record["reference_seconds"] == pytest.approx(2 * 0.02)
    assert record["ratio"] == pytest.approx(8)
    assert "subject_peak_bytes" not in record


def test_what_takes_long_is_repeated_less_and_not_warmed_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    record = measure(Case("test", {}, clock.taking(4.0), clock.taking(0.2)), CPU)
    assert record["repetitions"] == 3
    assert record["ratio"] == pytest.approx(0.05)
    assert clock.now == pytest.approx((2 + 3) * 4.0 + (2 + 10 - 1) * 0.2 + 100.0, abs=1e-6)


def test_peak_memory_is_that_of_the_thing_measured() -> None:
    before = torch.ones(200 * 2**18)  # what this process holds does not count
    small, large = peak_bytes(allocate(1), CPU), peak_bytes(allocate(300), CPU)
    assert before.numel() == 200 * 2**18
    assert 280 * 2**20 < large - small < 330 * 2**20


@pytest.mark.parametrize(
    "make",
    [gemm, SparseLayer(64, 256, "sparse"), SparseLayer(64, 256, "dense"), MaskedDense(64, 256), TimmBlock(9, 6, False)],
)
def test_what_is_measured_does_the_same_work_again_and_again(make: object) -> None:
    run = make(CPU)
    once, again = ([found] if isinstance(found, torch.Tensor) else found for found in (run(), run()))
    for one, other in zip(once, again, strict=True):
        assert bool(one.isfinite().all()) and bool((one != 0).any())
        torch.testing.assert_close(one, other)


def test_products_with_nonzeros_are_the_same_whoever_makes_them() -> None:
    found = {}
    for by in ("own", "torch", "masked"):
        torch.manual_seed(0)
        y = Nonzeros(20, 60, 128, 2, "product", by)(CPU)()
        torch.manual_seed(0)
        of_x, of_values = Nonzeros(20, 60, 128, 2, "gradients", by)(CPU)()
        found[by] = y.flatten(), of_x.flatten(), of_values[of_values != 0].flatten()
    for by in ("torch", "masked"):
        for one, other in zip(found["own"], found[by], strict=True):
            torch.testing.assert_close(one, other)


def test_a_sparse_layer_and_its_alternative_are_the_same_map() -> None:
    """Of the same mask: positions come from the same seed."""
    from mixersweep.layers import draw_mask

    one, other = (draw_mask(64, 64, 256, "exact", torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_of_a_suite_has_its_sizes(suite: str) -> None:
    cases = list(SUITES[suite](True))
    assert len({(case.benchmark, case.mode, json.dumps(case.sizes)) for case in cases}) == len(cases)
    for case in cases:
        assert {"model", "width", "connections", "batch_size"} <= set(case.sizes)


def test_a_step_updates_the_network() -> None:
    step = Step(("model=sw_mlp", "connections=1000", "depth=1"))(CPU)
    losses = [float(step()) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_json_is_one_object_a_line_and_nothing_else(tmp_path: object) -> None:
    code = (
        "import sys, mixersweep.bench as b, mixersweep.bench.layers as l\n"
        "b.SUITES['layers'] = lambda everything: [l.Case('t', {'model': 'x', 'width': 8}, l.gemm, l.gemm)]\n"
        "from mixersweep.cli import main; sys.exit(main(['bench', 'layers', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["benchmark"] == "t"
