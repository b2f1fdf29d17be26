"""The benchmarks measure what they say; nothing here asserts a speed."""

import json
import subprocess
import sys

import pytest
import torch

from mixersweep.bench import SUITES, Case, harness, measure, verdict
from mixersweep.bench.harness import captured, interval, peak_bytes
from mixersweep.bench.layers import (
    DenseLayer,
    LayoutConversion,
    LeftProduct,
    MaskedDense,
    Nonzeros,
    SparseLayer,
    TimmBlock,
    gemm,
)
from mixersweep.bench.step import Step
from mixersweep.bench.structures import SETTINGS, SIZES, WIDEST_DENSE, StructuredLayer, structure_cases
from mixersweep.cli import main
from mixersweep.cli.bench import describe_verdict
from mixersweep.compose import config_of
from mixersweep.families import FAMILIES
from mixersweep.families.mlps import MLPFamily
from mixersweep.layers import product
from mixersweep.training import timing

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

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (harness, timing):
            monkeypatch.setattr(module, "time", self)

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
    clock = Clock(monkeypatch)
    record = measure(Case("test", {"width": 3}, clock.taking(0.005), clock.taking(0.02), scale=2.0), CPU)
    assert record["benchmark"] == "test"
    assert (record["width"], record["mode"], record["repetitions"]) == (3, "eager", 10)
    assert record["subject_seconds"] == pytest.approx(0.005)
    assert record["reference_seconds"] == pytest.approx(2 * 0.02)
    assert record["ratio"] == pytest.approx(8)
    assert "subject_peak_bytes" not in record


def test_what_is_brief_is_repeated_more_often_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def steady(seconds: float) -> object:
        def run() -> None:
            clock.now += seconds

        return lambda device: run

    record = measure(Case("test", {}, steady(0.0001), steady(0.00005)), CPU)
    assert (record["repetitions"], record["ratio"]) == (harness.MOST, pytest.approx(0.5))
    assert record["ratio_low"] == pytest.approx(0.5) == record["ratio_high"]
    record = measure(Case("test", {}, steady(0.004), steady(0.004)), CPU)
    assert record["repetitions"] == 32, "2 x 2 x 4 ms each, up to half a second"


def test_an_interval_of_the_median_is_as_sure_as_it_says() -> None:
    """Of ten numbers the second and the ninth: outside is the median with probability 2 (1 + 10) / 2^10 = .021."""
    assert interval([float(x) for x in (7, 3, 9, 1, 10, 5, 2, 8, 6, 4)]) == (2, 9)
    assert interval([3.0, 1.0, 2.0]) == (1, 3)
    assert interval([1.0]) == (1, 1)
    draws = torch.rand(2000, 21, generator=torch.Generator().manual_seed(0)).tolist()
    inside = sum(low <= 0.5 <= high for low, high in map(interval, draws)) / 2000
    assert 0.95 - 3 * (0.05 * 0.95 / 2000) ** 0.5 <= inside < 0.99


def compared(ratio: float, low: float, high: float, *, torchs_own: bool = True) -> dict[str, object]:
    sizes = {"width": 8, "batch_size": 4}
    return {"benchmark": "t", **sizes, "ratio": ratio, "ratio_low": low, "ratio_high": high, "torchs_own": torchs_own}


def test_a_path_is_slower_than_torchs_own_only_if_noise_cannot_be_why() -> None:
    fine, slow, noisy = compared(0.97, 0.9, 0.94), compared(0.5, 0.4, 0.6), compared(0.8, 0.3, 1.2)
    other = compared(0.1, 0.1, 0.1, torchs_own=False)
    assert verdict([other]) is None
    found = verdict([fine, slow, noisy, other])
    assert found is not None
    assert (found["compared"], found["slower"], found["unsure"], found["lowest_ratio"]) == (3, [slow], [noisy], 0.5)
    assert describe_verdict(found) == (
        "torch's own is faster in 1 of 3 paths (lowest 0.5x); t width=8 batch_size=4 0.5x (0.4 to 0.6); "
        "cannot tell, the machine is too busy: t width=8 batch_size=4 0.8x (0.3 to 1.2)"
    )
    assert describe_verdict(verdict([fine]) or {}) == "torch's own is faster in none of 1 paths (lowest 0.97x)"


def test_every_way_of_our_own_is_compared_with_torchs() -> None:
    names = {case.benchmark for case in SUITES["layers"](False) if case.torchs_own}
    assert names == {
        *("product_vs_mm", "left_product_vs_mm", "sparse_product_vs_torch", "sparse_gradients_vs_torch"),
        *("permuted_to_features_vs_torch", "permuted_to_table_vs_torch"),
    }


@pytest.mark.parametrize("routine", ["onednn", "torch"])
def test_a_layer_by_a_routine_leaves_the_one_in_use(routine: product.Routine, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(product, "_routine", "torch")
    monkeypatch.setattr(product, "is_available", lambda: True)

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        used.append(product.routine())
        return torch.nn.functional.linear(x, weight, bias)

    DenseLayer(8, 4, linear, routine)(CPU)()
    assert (used, product.routine()) == ([routine], "torch")


@pytest.mark.parametrize("to", ["features", "table"])
def test_layout_conversions_are_the_same_by_either_implementation(to: str) -> None:
    found = []
    for by in ("own", "torch"):
        torch.manual_seed(0)
        found.append(LayoutConversion(6, 5, to, by)(CPU)())
    assert torch.equal(*found)


def test_what_takes_long_is_repeated_less_and_not_warmed_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
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
    [
        gemm,
        SparseLayer(64, 256, "sparse"),
        SparseLayer(64, 256, "dense"),
        MaskedDense(64, 256),
        TimmBlock(9, 6, False),
        DenseLayer(8, 4, product.linear),
        LeftProduct(8, 4, product.product),
    ],
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


def test_every_structure_is_compared_with_dense_layers_of_its_flops_and_of_its_shape() -> None:
    cases = list(structure_cases())
    sparse = {name for name, family in FAMILIES.items() if issubclass(family, MLPFamily)} - {"mlp"}
    assert {case.sizes["model"] for case in cases} == sparse
    for name in sparse:
        for setting in SETTINGS.get(name, (None,)):
            own = [c for c in cases if (c.sizes["model"], c.sizes["setting"]) == (name, setting)]
            by_flops = [c for c in own if c.benchmark == "structure_vs_same_flops"]
            by_shape = [c for c in own if c.benchmark == "structure_vs_same_shape"]
            assert len(by_flops) == len(SIZES)
            assert [c.sizes for c in by_shape] == [c.sizes for c in by_flops if c.sizes["width"] <= WIDEST_DENSE]
            for case, (_, connections) in zip(by_flops, SIZES, strict=True):
                assert case.sizes["connections"] == pytest.approx(connections, rel=0.02)
                assert case.scale * case.reference.width**2 == pytest.approx(case.sizes["connections"])
            assert all(case.reference.width == case.sizes["width"] for case in by_shape)


@pytest.mark.parametrize("name", ["sw_mlp", "hashed", "block_diagonal", "btt", "butterfly", "low_rank"])
def test_a_structured_layer_does_the_multiply_adds_that_its_case_says(name: str) -> None:
    sizes = ["connections=1920"] if name in ("btt", "butterfly") else ["width=120", "connections=1800"]
    layer = StructuredLayer(config_of([f"model={name}", *sizes]), batch_size=4)
    built = layer.layer()
    assert (built.in_width, built.out_width, built.connections) == (layer.width, layer.width, layer.connections)
    once, again = layer(CPU)(), layer(CPU)()
    assert len(once) == len(again) == 1 + len(list(built.parameters()))
    assert all(bool(one.isfinite().all()) and bool((one != 0).any()) for one in once)


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


@pytest.mark.parametrize("as_json", [True, False])
def test_the_last_line_says_whether_torchs_own_is_faster(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("t", {"model": "x", "width": 8, "batch_size": 4}, gemm, gemm, torchs_own=True)
    monkeypatch.setitem(SUITES, "layers", lambda everything: [case])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert main(["bench", "layers", "--device", "cpu", *(["--json"] if as_json else [])]) == 0
    first, last = capsys.readouterr().out.splitlines()
    if as_json:
        assert (json.loads(first)["benchmark"], json.loads(last)["benchmark"]) == ("t", "slower_than_torch")
        assert json.loads(last)["compared"] == 1
    else:
        assert first.split()[1] == "t" and last.startswith("torch's own is faster in ")


@pytest.mark.gpu
def test_what_a_graph_reads_stays_with_it() -> None:
    """Here memory that is free is written over at once."""
    device = torch.device("cuda")
    x = torch.arange(1000.0, device=device)
    replay = captured(lambda x=x: x + 1, device)
    expected = x + 1
    del x
    torch.cuda.empty_cache()
    for _ in range(4):
        torch.full((1000,), float("nan"), device=device)
    assert torch.equal(replay(), expected)
