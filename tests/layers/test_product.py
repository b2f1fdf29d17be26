"""The product by either routine against the plain one in float64: values, gradients, layouts, and where each is used.

Mostly of whole numbers, whose sums fp32 has exactly in any order: every digit is compared.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixersweep.layers.product as module
from mixersweep import processor
from mixersweep.layers.product import linear, product
from tests.layers.test_nonzeros import whole_numbers

needs_onednn = pytest.mark.skipif(not module.is_available(), reason="this torch has no oneDNN for this processor")

SHAPES = {
    "tall": (5000, 33, 29),
    "wide": (31, 66, 4099),
    "deep": (37, 9001, 41),
    "square": (301, 303, 305),
    "few": (203, 209, 31),
}


def matrix(rows: int, columns: int, layout: str, seed: int) -> Tensor:
    """In rows, in columns, or spread from one row without memory of its own."""
    x = whole_numbers(rows, columns, seed=seed)
    if layout == "columns":
        return x.t().contiguous().t()
    return x[:1].expand(rows, columns) if layout == "spread" else x


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what oneDNN is given, call by call; it is in use, and everything is enough."""
    found: list[tuple[int, ...]] = []
    original = module._onednn

    def counted(a: Tensor, b: Tensor, row: Tensor | None) -> Tensor:
        found.append((*a.shape, b.shape[1]))
        return original(a, b, row)

    monkeypatch.setattr(module, "_routine", "onednn")
    monkeypatch.setattr(module, "_onednn", counted)
    monkeypatch.setattr(module, "ENOUGH", 1)
    return found


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What torch is asked for in tests is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_onednn
@pytest.mark.parametrize("upstream", ["rows", "columns", "spread"])
@pytest.mark.parametrize(
    "layouts", [("rows", "rows"), ("rows", "columns"), ("columns", "rows"), ("columns", "columns")]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_and_its_gradients_are_those_of_float64(
    shape: str, bias: bool, layouts: tuple[str, str], upstream: str, calls: list[tuple[int, ...]], two_threads: None
) -> None:
    del two_threads
    n, k, m = SHAPES[shape]
    a, b = matrix(n, k, layouts[0], 1).requires_grad_(), matrix(k, m, layouts[1], 2).requires_grad_()
    inputs = [a, b, *([whole_numbers(n, 1, seed=3).requires_grad_()] if bias else [])]
    gradient = matrix(n, m, upstream, 4)
    found = product(*inputs)
    gradients = torch.autograd.grad(found, inputs, gradient)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = doubles[0] @ doubles[1] + (doubles[2] if bias else 0)
    assert found.is_contiguous() and len(calls) == 3
    slow = (expected, *torch.autograd.grad(expected, doubles, gradient.double()))
    for one, other in zip((found, *gradients), slow, strict=True):
        assert torch.equal(one.double(), other), one.shape


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(70, 33), (3, 5, 33), (33,)])
def test_a_linear_layer_is_torchs(shape: tuple[int, ...], bias: bool, calls: list[tuple[int, ...]]) -> None:
    x = whole_numbers(*shape, seed=1).requires_grad_()
    inputs = [x, *(whole_numbers(*size, seed=2).requires_grad_() for size in [(17, 33), (17,)][: 1 + bias])]
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x):
        found = linear(given, *inputs[1:])
        expected = torch.nn.functional.linear(*(value.double() for value in inputs))
        upstream = whole_numbers(*expected.shape, seed=3)
        assert torch.equal(found.double(), expected)
        of_found = torch.autograd.grad(found, inputs, upstream)
        for one, other in zip(of_found, torch.autograd.grad(expected, inputs, upstream.double()), strict=True):
            assert torch.equal(one, other)
    assert calls


@needs_onednn
def test_gradients_have_gradients(calls: list[tuple[int, ...]]) -> None:
    a, b = whole_numbers(9, 7, seed=1, most=2).requires_grad_(), whole_numbers(7, 8, seed=2, most=2)
    (first,) = torch.autograd.grad((product(a, b) ** 3).sum(), a, create_graph=True)
    (found,) = torch.autograd.grad(first.sum(), a)
    before = len(calls)
    (slow,) = torch.autograd.grad(((a @ b) ** 3).sum(), a, create_graph=True)
    (expected,) = torch.autograd.grad(slow.sum(), a)
    assert torch.equal(found, expected)
    assert len(calls) == before >= 3


@needs_onednn
def test_it_stays_out_of_small_products_other_dtypes_and_autocast(calls: list[tuple[int, ...]]) -> None:
    a, b = torch.randn(300, 300), torch.randn(300, 300)
    product(a.double(), b.double())
    product(a.bfloat16(), b.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert product(a, b).dtype == linear(a, b).dtype == torch.bfloat16
    module.ENOUGH = 300**3 + 1  # put back by the fixture
    product(a, b)
    assert not calls
    module.ENOUGH = 300**3
    product(a, b)
    assert calls == [(300, 300, 300)]


@needs_onednn
@pytest.mark.parametrize("threads", [1, 2])
def test_with_one_thread_a_gradient_that_is_summed_over_many_rows_is_torchs_own(
    threads: int, calls: list[tuple[int, ...]], two_threads: None
) -> None:
    del two_threads
    torch.set_num_threads(threads)
    x, weight = torch.randn(4096, 32).requires_grad_(), torch.randn(16, 32).requires_grad_()
    linear(x, weight).backward(torch.ones(4096, 16))
    assert sorted(calls) == [(16, 4096, 32)] * (threads == 2) + [(4096, 16, 32), (4096, 32, 16)]


@pytest.mark.parametrize("layouts", [("rows", "rows"), ("rows", "columns"), ("columns", "rows")])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("routine", ["onednn", "torch"])
def test_either_routine_rounds_no_more_than_sums_in_fp32_do(
    routine: module.Routine,
    shape: str,
    layouts: tuple[str, str],
    calls: list[tuple[int, ...]],
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sum of k products in any order is off by k u / (1 - k u) times that of their sizes at most (Higham, 3.5)."""
    del two_threads
    monkeypatch.setattr(module, "_routine", routine)
    n, k, m = SHAPES[shape]
    draw = torch.Generator().manual_seed(0)
    a, b, gradient, bias = (torch.randn(*size, generator=draw) for size in ((n, k), (k, m), (n, m), (n, 1)))
    a, b = (x.t().contiguous().t() if layout == "columns" else x for x, layout in zip((a, b), layouts, strict=True))
    inputs = [x.requires_grad_() for x in (a, b, bias)]
    found = product(*inputs)
    gradients = torch.autograd.grad(found, inputs, gradient)
    x, y, g, c = (tensor.detach().double() for tensor in (a, b, gradient, bias))
    ones = g.new_ones(m, 1)
    expected = [(x @ y + c, x.abs() @ y.abs() + c.abs(), k + 1), (g @ y.T, g.abs() @ y.T.abs(), m)]
    expected += [(x.T @ g, x.T.abs() @ g.abs(), n), (g @ ones, g.abs() @ ones, m)]
    for one, (exact, sizes, terms) in zip((found, *gradients), expected, strict=True):
        rounding = terms * torch.finfo(torch.float32).eps / 2
        assert bool(((one.double() - exact).abs() <= rounding / (1 - rounding) * sizes).all()), one.shape
    assert len(calls) == (3 if routine == "onednn" and module.is_available() else 0)


ZEN_5 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t: 2\n\nprocessor\t: 1\n"
MACHINES = {
    "Zen 5": (ZEN_5, "AVX512", "onednn"),
    "Zen 5, told to keep to AVX2": (ZEN_5, "AVX2", "torch"),
    "Zen 4": (ZEN_5.replace("26", "25"), "AVX512", "torch"),
    "Zen 3": (ZEN_5.replace("26", "25"), "AVX2", "torch"),
    "Intel with AVX-512": (ZEN_5.replace("AuthenticAMD", "GenuineIntel").replace("26", "6"), "AVX512", "torch"),
    "Intel of family 26": (ZEN_5.replace("AuthenticAMD", "GenuineIntel"), "AVX512", "torch"),
    "Intel with AVX2": (ZEN_5.replace("AuthenticAMD", "GenuineIntel").replace("26", "6"), "AVX2", "torch"),
    "of no known vendor": (ZEN_5.replace("AuthenticAMD", "CentaurHauls"), "AVX512", "torch"),
    "Arm": ("processor\t: 0\nFeatures\t: fp asimd sve bf16\n", "SVE256", "torch"),
    "odd": ("vendor_id\t: AuthenticAMD\ncpu family\t: unknown\n", "AVX512", "torch"),
    "silent": (None, "AVX512", "torch"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_routine_is_the_one_for_the_machine(machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, capability, expected = MACHINES[machine]
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(module, "is_available", lambda: "Arm" not in machine)
    assert module.fastest() == expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert module.fastest() == "torch"


def test_a_routine_is_used_until_another_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_routine", "torch")  # put back at the end
    monkeypatch.setattr(module, "fastest", lambda: "torch")
    monkeypatch.setattr(module, "is_available", lambda: True)
    assert [module.use("onednn"), module.routine(), module.use(), module.routine()] == ["onednn"] * 2 + ["torch"] * 2
    monkeypatch.setattr(module, "is_available", lambda: False)
    assert [module.use("onednn"), module.routine()] == ["torch"] * 2


def test_on_another_kind_of_processor_there_is_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not module.is_available()


@needs_onednn
@pytest.mark.slow
def test_compiled_it_is_the_same(calls: list[tuple[int, ...]]) -> None:
    del calls
    sizes = [(40, 30), (20, 30), (20,)]
    inputs = [whole_numbers(*size, seed=n, most=4).requires_grad_() for n, size in enumerate(sizes)]

    def both(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        hidden = linear(x, weight, bias)
        return product(weight, x.t(), bias[:, None]).t() * hidden

    compiled = torch.compile(both, dynamic=False)
    one, other = compiled(*inputs), both(*inputs)
    assert torch.equal(one, other)
    upstream = whole_numbers(*one.shape, seed=4, most=4)
    for mine, theirs in zip(
        torch.autograd.grad(one, inputs, upstream), torch.autograd.grad(other, inputs, upstream), strict=True
    ):
        assert torch.equal(mine, theirs)
