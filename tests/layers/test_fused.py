"""Passes fused for packs of runs against float64, on a GPU, or, in a process of their own, in Triton's interpreter."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.layers import fused
from tests.speed import HANGS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def on_its_device(test: Any) -> Any:
    """Such a test runs on a GPU, and where Triton interprets its kernels."""
    return test if INTERPRETED else pytest.mark.gpu(needs_a_gpu(test))


class Case(NamedTuple):
    """A norm of activations (R, rows, columns), with its scale and shift (R, length)."""

    name: str
    rows: int
    columns: int
    length: int
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]

    def inputs(self, R: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Parameters are views of one tensor, from an odd place on, so rows lie far apart and are not aligned."""
        generator = torch.Generator().manual_seed(seed)
        shape = R, self.rows, self.columns
        x = torch.randn(shape, generator=generator) * 2 + 1
        flat = torch.randn(R, 3 + 2 * self.length + 2, generator=generator).to(DEVICE)
        return [x.to(DEVICE, dtype), *flat[:, 3:-2].split(self.length, 1)]

    def __call__(self, inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        """What it gives, and the gradients of its inputs."""
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = self.ours(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, g.to(y.dtype))]

    def reference(self, inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        """The same by autograd, in float64."""
        inputs = [x.detach().double().requires_grad_() for x in inputs]
        y = self.plain(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, g.double())]


EPS = 1e-5
"""Of the norms."""


def _layer_norm(rows: int, columns: int) -> Case:
    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (columns,), eps=EPS) * weight[:, None] + bias[:, None]

    return Case("layer norm", rows, columns, columns, lambda *xs: fused.layer_norm(*xs, eps=EPS), plain)


def _column_norm(rows: int, columns: int) -> Case:
    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x.mT, (rows,), eps=EPS).mT * weight[..., None] + bias[..., None]

    return Case("column norm", rows, columns, rows, lambda *xs: fused.column_norm(*xs, eps=EPS), plain)


LARGE = [] if INTERPRETED else [(4096, 32), (4096, 25), (1024, 128), (2580, 130), (5000, 96), (128, 2580), (32, 4096)]
CASES = [
    *(_layer_norm(*each) for each in [(7, 25), (130, 33), (7, 1), (9, 300), *LARGE]),
    *(_column_norm(*each) for each in [(25, 130), (33, 40), (1, 7), (650, 9), *LARGE]),
]
of_all = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.rows} x {case.columns}")


@pytest.fixture(params=["blocks as they are", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small blocks, every sum takes several parts of several tiles, at sizes that an interpreter can do."""
    if request.param == "small blocks":
        monkeypatch.setattr(fused, "TILE", 1024)
        monkeypatch.setattr(fused, "MOST_PARTS", 2)
        monkeypatch.setattr(fused, "WHOLE_COLUMNS", 24)
        monkeypatch.setattr(fused, "SPLIT_TILE", (32, 32))
        monkeypatch.setattr(fused, "MOST_SPLITS", 4)


def _gradient(case: Case, R: int) -> Tensor:
    return torch.randn(R, case.rows, case.columns, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def _close(ours: Tensor, plain: Tensor, tolerance: float) -> bool:
    return bool((ours.double() - plain).norm() <= tolerance * max(plain.norm().item(), 1))


@on_its_device
@of_all
@pytest.mark.parametrize("R", [1, 3])
@pytest.mark.usefixtures("blocks")
def test_numbers_and_gradients_are_those_of_the_formulas(case: Case, R: int) -> None:
    inputs, g = case.inputs(R), _gradient(case, R)
    # The gradient of a norm of one number is a difference of two that are equal and 1/sqrt(eps) in size.
    cancelled = EPS**-0.5 if 1 in (case.rows, case.columns) else 1.0
    for ours, plain in zip(case(inputs, g), case.reference(inputs, g), strict=True):
        assert ours.dtype == torch.float32
        assert _close(ours, plain, 1e-6 * cancelled)


@on_its_device
@of_all
@pytest.mark.usefixtures("blocks")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_run_alone_is_the_run_in_a_pack_to_the_bit(case: Case) -> None:
    alone, g = case.inputs(1), _gradient(case, 1)
    given = case(alone, g)
    for R, place, neighbour in ((2, 1, float("nan")), (3, 1, float("inf"))):
        pack, g_pack = case.inputs(R), _gradient(case, R)
        for x, x_alone in zip(pack, alone, strict=True):
            x[:] = neighbour
            x[place] = x_alone[0]
        g_pack[:] = neighbour
        g_pack[place] = g[0]
        for ours, ours_alone in zip(case(pack, g_pack), given, strict=True):
            assert torch.equal(ours[place], ours_alone[0])


@on_its_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case",
    [_layer_norm(70, 33), _column_norm(33, 70)],
    ids=lambda case: case.name,
)
def test_halves_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    inputs, g = case.inputs(2, dtype=dtype), _gradient(case, 2).to(dtype)
    y, *gradients = case(inputs, g)
    assert y.dtype == dtype
    assert [each.dtype for each in gradients] == [x.dtype for x in inputs]
    for ours, plain in zip([y, *gradients], case.reference(inputs, g), strict=True):
        assert _close(ours, plain, torch.finfo(ours.dtype).eps / 2 if ours.dtype == dtype else 1e-6)


@on_its_device
@pytest.mark.parametrize("norm", [fused.layer_norm, fused.column_norm])
def test_norms_give_the_dtype_asked_for(norm: Callable[..., Tensor]) -> None:
    x, weight, bias = _layer_norm(32, 32).inputs(2)
    y = norm(x, weight, bias, 1e-5)
    half = norm(x, weight, bias, 1e-5, torch.float16)
    assert half.dtype == torch.float16
    # A rounding to half; and what fp32, compiled for another dtype, adds up in another order: the numbers of a row, and
    # product and shift, which may cancel.
    of_half = y.abs().clamp(min=2**-14) / 2**11
    shift = bias[:, None] if norm is fused.layer_norm else bias[..., None]
    of_sums = 32 * torch.finfo(torch.float32).eps * ((y - shift).abs() + shift.abs())
    assert torch.all((half.float() - y).abs() <= of_half + of_sums)
    assert norm(x.half(), weight, bias, 1e-5, torch.float32).dtype == torch.float32


@on_its_device
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("factors", [False, True])
def test_sgd_is_torchs(nesterov: bool, factors: bool) -> None:
    R, P = 3, 1301
    generator = torch.Generator().manual_seed(0)
    p, buffer, *gradients = (torch.randn(R, P + 2, generator=generator).to(DEVICE)[:, 1:-1] for _ in range(5))
    buffer.zero_()
    lr, momentum, decay = (torch.rand(R, generator=generator).to(DEVICE) * 0.5 for _ in range(3))
    decays, rates = torch.ones(2, P, device=DEVICE)
    decays[: P // 2], rates[P // 4 :] = 0, 0.25
    plain, optimisers = [], []
    for run in range(R):
        groups = []
        for part in (slice(P // 4), slice(P // 4, P // 2), slice(P // 2, P)):
            parameter = p[run, part].double().clone().requires_grad_()
            options = {"lr": lr[run].item(), "weight_decay": decay[run].item()}
            if factors:
                options = {"lr": options["lr"] * rates[part][0].item(), "weight_decay": 0.0 + options["weight_decay"]}
                options["weight_decay"] *= decays[part][0].item()
            groups.append({"params": [parameter], **options})
        plain.append([group["params"][0] for group in groups])
        optimisers.append(torch.optim.SGD(groups, momentum=momentum[run].item(), nesterov=nesterov))
    padding = p._base[:, [0, -1]].clone()
    for g in gradients:
        of_factors = (decays, rates) if factors else (None, None)
        fused.sgd_(p, g, buffer, lr, momentum, decay, *of_factors, nesterov=nesterov)
        for run, optimiser in enumerate(optimisers):
            for parameter, part in zip(plain[run], g[run].double().tensor_split((P // 4, P // 2)), strict=True):
                parameter.grad = part.clone()
            optimiser.step()
    expected = torch.stack([torch.cat([each.detach() for each in parameters]) for parameters in plain])
    assert _close(p, expected, 1e-6)
    assert torch.equal(p._base[:, [0, -1]], padding)


@on_its_device
def test_sgd_without_momentum_or_decay() -> None:
    p, g = torch.randn(2, 2, 100, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    lr = torch.tensor([0.5, 0.25], device=DEVICE)
    expected = p - lr[:, None] * g
    fused.sgd_(p, g, None, lr)
    assert torch.allclose(p, expected, atol=1e-6)


@pytest.mark.gpu
@needs_a_gpu
def test_passes_go_into_a_cuda_graph() -> None:
    case = _layer_norm(4096, 32)
    inputs, g = case.inputs(3), _gradient(case, 3)
    expected = case(inputs, g)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case(inputs, g)
    for each in captured:
        each.fill_(float("nan"))
    graph.replay()
    for ours, plain in zip(captured, expected, strict=True):
        assert torch.equal(ours, plain)


def test_without_triton_nothing_is_available() -> None:
    source = (
        "import sys; sys.modules['triton'] = None; from mixersweep.layers import fused;"
        "sys.exit(fused.available('cpu') or fused.available('cuda'))"
    )
    subprocess.run([sys.executable, "-c", source], check=True, timeout=HANGS)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_same_where_triton_interprets_its_kernels() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    if _version("triton") < (3, 3) and _version("numpy") >= (2, 4):
        pytest.skip("the interpreter of this Triton fails with this numpy")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu",
        str(Path(__file__)),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert ended.returncode == 0, ended.stdout
    assert not fused.available("cpu")


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
