"""Products of a pack's runs against float64, on a GPU, or, in a process of their own, in Triton's interpreter."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mixersweep.layers import PermutedKronecker, batched, fused, pack, product
from tests.layers.interpreted import DEVICE, INTERPRETED, needs_a_gpu, on_its_device, run_interpreted


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case(NamedTuple):
    """Rows by a weight or a weight by columns, as they lie in a network: the weight and the bias in one flat tensor."""

    n: int
    k: int
    m: int
    weight: str
    """``left`` or ``right``, and ``turned`` where it is stored as its transpose."""
    bias: str = "none"
    blocks: tuple[int, ...] = ()

    def inputs(self, R: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """a, b, and a bias if there is one; rows of the flat tensor lie far apart and are not aligned."""
        left = "left" in self.weight
        sizes = (self.n, self.k) if left else (self.k, self.m)
        stored = sizes[::-1] if "turned" in self.weight else sizes
        count = {"none": 0, "rows": self.n, "columns": self.m}[self.bias]
        drawn = torch.randn(
            R, 3 + torch.Size((*self.blocks, *sizes)).numel() + torch.Size((*self.blocks, count)).numel() + 2,
            generator=seeded(seed),
        ).to(DEVICE)  # fmt: skip
        weight = drawn[:, 3 : 3 + torch.Size((*self.blocks, *sizes)).numel()].unflatten(1, (*self.blocks, *stored))
        weight = weight.mT if "turned" in self.weight else weight
        others = (self.k, self.m) if left else (self.n, self.k)
        x = torch.randn(R, *self.blocks, *others, generator=seeded(seed + 1)).to(DEVICE, dtype)
        factors = [weight, x] if left else [x, weight]
        if count:
            bias = drawn[:, 3 + weight[0].numel() : -2].unflatten(1, (*self.blocks, count))
            factors.append(bias[..., None] if self.bias == "rows" else bias[..., None, :])
        return factors

    def gradient(self, R: int) -> Tensor:
        return torch.randn(R, *self.blocks, self.n, self.m, generator=seeded(2)).to(DEVICE)

    def __call__(self, inputs: list[Tensor], g: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The product, and the gradients of what goes in."""
        inputs = [x.detach().requires_grad_() for x in inputs]
        a, b, *bias = inputs
        y = batched.multiplied(a, b, bias[0] if bias else None, dtype)
        return [y.detach(), *torch.autograd.grad(y, inputs, g.to(y.dtype))]

    def reference(self, inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        """The same by autograd, in float64."""
        inputs = [x.detach().double().requires_grad_() for x in inputs]
        a, b, *bias = inputs
        y = a @ b + (bias[0] if bias else 0)
        return [y.detach(), *torch.autograd.grad(y, inputs, g.double())]


LARGE = [
    Case(4096, 32, 32, "right turned", "columns"),
    Case(32, 32, 4096, "left", "rows"),
    Case(4096, 25, 26, "right turned", "columns"),
    Case(26, 25, 4096, "left", "rows"),
    Case(64, 64, 8192, "left", "rows"),
    Case(16384, 128, 128, "right turned", "columns"),
    Case(8192, 16, 32, "right turned", "columns"),
    Case(128, 1024, 10, "right turned", "columns"),
    Case(32, 32, 128, "left", "rows", (64,)),
]
CASES = [
    Case(66, 25, 26, "right turned", "columns"),
    Case(26, 25, 70, "left", "rows"),
    Case(25, 40, 33, "left turned", "columns"),
    Case(7, 600, 10, "right", "rows"),
    Case(33, 7, 90, "left", "rows"),
    Case(90, 33, 7, "right turned", "columns"),
    Case(1, 1, 1, "left", "columns"),
    Case(5, 1, 9, "right turned"),
    Case(9, 11, 20, "left", "rows", (4,)),
    Case(20, 11, 9, "right turned", "columns", (4,)),
    *([] if INTERPRETED else LARGE),
]
of_all = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(str(each) for each in case))


@pytest.fixture(params=["tiles as they are", "small tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With small tiles, every product takes several, and contractions several parts of several steps."""
    batched.tiles_of.cache_clear()
    if request.param == "small tiles":
        monkeypatch.setattr(batched, "WIDEST", 16)
        monkeypatch.setattr(batched, "STEP", 16)
        monkeypatch.setattr(batched, "PART", 5)
        monkeypatch.setattr(batched, "ENOUGH_PROGRAMS", 3)
    yield
    batched.tiles_of.cache_clear()


def _without_gaps(x: Tensor) -> Tensor:
    """A copy, in rows or columns as it is, from an address that many numbers can be read from."""
    turned = x.stride(-2) < x.stride(-1)
    return x.mT.clone(memory_format=torch.contiguous_format).mT if turned else x.contiguous().clone()


def _close(ours: Tensor, plain: Tensor, tolerance: float) -> bool:
    return bool((ours.double() - plain).norm() <= tolerance * max(plain.norm().item(), 1))


@on_its_device
@of_all
@pytest.mark.usefixtures("tiles")
def test_numbers_and_gradients_are_those_of_the_formulas(case: Case) -> None:
    inputs, g = case.inputs(3), case.gradient(3)
    rounding = 2 * torch.finfo(torch.float32).eps * max(case.n, case.k, case.m) ** 0.5  # a walk of so many steps
    for ours, plain, x in zip(case(inputs, g), case.reference(inputs, g), [g, *inputs], strict=True):
        assert ours.dtype == torch.float32 and ours.shape == x.shape
        assert _close(ours, plain, rounding)


@on_its_device
@of_all
@pytest.mark.usefixtures("tiles")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_run_alone_is_the_run_in_a_pack_to_the_bit(case: Case) -> None:
    drawn, g = case.inputs(1), case.gradient(1)
    given = case(drawn, g)
    for one, other in zip(given, case([_without_gaps(x) for x in drawn], g), strict=True):
        assert torch.equal(one, other), "where a factor lies is no matter of numbers"
    for R, place, neighbour in ((2, 1, float("nan")), (3, 1, float("inf"))):
        together, g_pack = case.inputs(R), case.gradient(R)
        for x, alone in zip(together, drawn, strict=True):
            x[:] = neighbour
            x[place] = alone[0]
        g_pack[:] = neighbour
        g_pack[place] = g[0]
        for ours, alone in zip(case(together, g_pack), given, strict=True):
            assert torch.equal(ours[place], alone[0])


@on_its_device
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        pytest.param(
            torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter multiplies no bfloat16")
        ),
    ],
)
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("case", CASES[:2], ids=str)
@pytest.mark.usefixtures("tiles")
def test_halves_are_multiplied_exactly_and_rounded_once(case: Case, dtype: torch.dtype, wide: bool) -> None:
    """Factors in fp32 are rounded to halves first, as autocast does; a weight's gradient is fp32 as the weight is."""
    inputs, g = case.inputs(2, dtype=torch.float32 if wide else dtype), case.gradient(2).to(dtype)
    y, *gradients = case(inputs, g, dtype)
    assert y.dtype == dtype
    assert [each.dtype for each in gradients] == [x.dtype for x in inputs]
    rounded = [x.to(dtype) for x in inputs[:2]] + inputs[2:]
    for ours, plain in zip([y, *gradients], case.reference(rounded, g), strict=True):
        assert _close(ours, plain, torch.finfo(ours.dtype).eps / 2 if ours.dtype == dtype else 1e-6)


@on_its_device
def test_autocast_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "is_for", lambda *_: True)
    a, b, bias = CASES[0].inputs(2)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = torch.baddbmm(bias, a, b)
    monkeypatch.setattr(batched, "multiplied", lambda *given: given[-1])
    with torch.autocast(DEVICE, torch.bfloat16):
        assert batched.products(a, b, bias) == expected.dtype == torch.bfloat16
    assert batched.products(a, b, bias) == torch.float32


@on_its_device
def test_factors_may_be_shared_by_all_runs_or_any_view() -> None:
    a, b, bias = CASES[0].inputs(3)
    g = CASES[0].gradient(3)
    shared = [a[:1].expand_as(a), b, bias[:1].expand_as(bias)]
    plain = [_without_gaps(x) for x in shared]
    sparse = [torch.stack([plain[0]] * 2, -1)[..., 0], *plain[1:]]
    expected = CASES[0](plain, g)
    for inputs in (shared, sparse):
        assert all(torch.equal(*both) for both in zip(CASES[0](inputs, g), expected, strict=True))
    for gradient in (g.mT.contiguous().mT, torch.stack([g, g], -1)[..., 1]):
        for ours, other in zip(CASES[0](plain, gradient), expected, strict=True):
            assert torch.allclose(ours, other, atol=1e-4)
    assert _close(CASES[0](plain, torch.ones((), device=DEVICE).expand_as(g))[3], torch.full_like(bias, 66.0), 1e-6)


@on_its_device
def test_a_bias_alone_can_have_a_gradient() -> None:
    a, b, bias = CASES[0].inputs(2)
    bias.requires_grad_()
    g = CASES[0].gradient(2)
    (of_bias,) = torch.autograd.grad(batched.multiplied(a, b, bias, torch.float32), bias, g)
    assert _close(of_bias, g.double().sum(1, keepdim=True), 1e-6)


@on_its_device
def test_a_weights_gradient_is_stored_as_the_weight() -> None:
    for case in CASES:
        inputs = case.inputs(2)
        _, *gradients = case(inputs, case.gradient(2))
        for gradient, x in zip(gradients, inputs, strict=True):
            assert gradient.is_contiguous() or gradient.mT.is_contiguous()
            assert gradient[0].stride() == x[0].stride() or 1 in x.shape[-2:]


@on_its_device
@pytest.mark.parametrize("name", ["linear", "product", "untied rows", "untied columns"])
def test_the_layers_of_a_pack_use_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what comes out is what torch's products give."""
    generator = seeded(3)
    R, blocks, i, o, B = 3, 4, 5, 6, 7
    untied = PermutedKronecker(blocks, i, o, tied=False)
    weight, bias = torch.randn(R, o, i, generator=generator), torch.randn(R, o, generator=generator)
    weights, biases = torch.randn(R, blocks, o, i, generator=generator), torch.randn(R, blocks, o, generator=generator)
    rows, columns = torch.randn(R, blocks, B, i, generator=generator), torch.randn(R, i, B, generator=generator)
    features = torch.randn(R, blocks * i, B, generator=generator)

    def of_kronecker(x: Tensor, weight: Tensor, bias: Tensor, method: str) -> Tensor:
        result: Tensor = torch.func.functional_call(
            _Method(untied, method), {"layer.weight": weight, "layer.bias": bias}, (x,)
        )
        return result

    function, tensors = {
        "linear": (product.linear, (rows, weight, bias)),
        "product": (lambda w, x, b: product.product(w, x, b[:, None]), (weight, columns, bias)),
        "untied rows": (lambda x, w, b: of_kronecker(x, w, b, "_map_rbc"), (rows, weights, biases)),
        "untied columns": (lambda x, w, b: of_kronecker(x, w, b, "_map_features_first"), (features, weights, biases)),
    }[name]
    tensors = [x.to(DEVICE) for x in tensors]
    expected = pack.call(function, *tensors)
    seen = []
    multiplied = batched.multiplied
    monkeypatch.setattr(batched, "is_for", lambda *_: True)
    monkeypatch.setattr(batched, "multiplied", lambda *given: seen.append(1) or multiplied(*given))
    found = pack.call(function, *tensors)
    assert seen
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class _Method(torch.nn.Module):
    def __init__(self, layer: PermutedKronecker, method: str) -> None:
        super().__init__()
        self.layer, self.method = layer, method

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self.layer, self.method)(x)
        return found


def test_on_a_cpu_they_are_torchs() -> None:
    a, b, bias = torch.randn(2, 4, 5), torch.randn(2, 5, 6), torch.randn(2, 4, 1)
    assert torch.equal(batched.products(a, b, bias), torch.baddbmm(bias, a, b))
    assert torch.equal(batched.products(a, b), torch.bmm(a, b))
    of_blocks = batched.products(a[None], b[None], bias[None])
    assert torch.equal(of_blocks, torch.baddbmm(bias, a, b)[None])


def test_large_products_are_torchs_in_whatever_order_their_sizes_come() -> None:
    for sizes in ((4096, 32, 32), (16384, 128, 128), (8192, 16, 32), (128, 1024, 10), (32, 32, 128)):
        assert all(batched.is_ours(*order) for order in (sizes, sizes[::-1], (sizes[1], sizes[0], sizes[2])))
    for sizes in ((256, 256, 256), (1024, 1024, 128), (4096, 4096, 512)):
        assert not any(batched.is_ours(*order) for order in (sizes, sizes[::-1], (sizes[1], sizes[0], sizes[2])))
    assert not batched.is_ours(4, 0, 4)


@pytest.mark.parametrize("sizes", [(32, 4096, 32), (26, 4096, 25), (64, 8192, 64), (128, 16384, 128), (32, 8192, 16)])
def test_a_long_contraction_of_one_run_is_split_and_covered(sizes: tuple[int, int, int]) -> None:
    how = batched.tiles_of(*sizes)
    assert how.parts * how.tiles >= 32
    assert how.parts * how.steps * how.k >= sizes[1] > (how.parts - 1) * how.steps * how.k


@pytest.mark.gpu
@needs_a_gpu
def test_products_go_into_a_cuda_graph() -> None:
    case = LARGE[0]
    inputs, g = case.inputs(3), case.gradient(3)
    expected = case(inputs, g)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case(inputs, g)
    for each in captured:
        each.fill_(float("nan"))
    graph.replay()
    for ours, plain in zip(captured, expected, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_tf32_is_as_torch_is_told(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, g = case.inputs(3), case.gradient(3)
    exact = case.reference(inputs, g)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    found = case(inputs, g)
    assert all(_close(*both, 2e-3) for both in zip(found, exact, strict=True))
    assert not _close(found[0], exact[0], 1e-5)
    alone = case([x[1:2].clone() for x in inputs], g[1:2].clone())
    assert all(torch.equal(ours[1], one[0]) for ours, one in zip(found, alone, strict=True))


def test_the_same_where_triton_interprets_its_kernels() -> None:
    assert run_interpreted(__file__) > 20
    assert not fused.available("cpu")
