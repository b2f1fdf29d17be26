"""Products of blocks by kernels of our own: every number, in packs too, and what happens where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixersweep.layers import (
    Factors,
    LowRank,
    RandomPermutation,
    block_diagonal,
    block_tensor_train,
    blocks,
    butterfly,
    kernels,
)
from mixersweep.layers.pack import call
from tests.layers.test_layers import seeded
from tests.speed import HANGS

CPU = torch.device("cpu")
needs_own = pytest.mark.skipif(blocks.why_not_own() is not None, reason=f"no kernels: {blocks.why_not_own()}")
LAYERS: dict[str, Callable[[], Factors]] = {
    "butterfly": lambda: butterfly([2] * 7),
    "butterfly of one cell": lambda: butterfly([2, 2]),
    "butterfly of unequal radices": lambda: butterfly([2, 3, 5, 4]),
    "butterfly of large radices": lambda: butterfly([4, 9, 12], bias=False),
    "btt": lambda: block_tensor_train(7, 5, 1),
    "btt of rank 3": lambda: block_tensor_train(16, 9, 3),
    "blocks": lambda: block_diagonal(60, 12),
    "blocks permuted": lambda: block_diagonal(60, 5, before=RandomPermutation(60, seeded(1))),
    "one": lambda: block_diagonal(1, 1),
    "low rank": lambda: LowRank(101, 7),
    "low rank of one": lambda: LowRank(6, 1, bias=False),
    "low rank of whole tiles": lambda: LowRank(64, 8),
}


def ready(name: str) -> Factors:
    """A layer whose weights are small whole numbers: fp32 has their sums exactly, so one wrong digit shows."""
    layer = LAYERS[name]()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=seeded(number)).float()
    return layer


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=seeded(seed)).float()


def found(layer: Factors, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output, and the gradients of x and of all parameters."""
    x = x.detach().requires_grad_()
    y = layer(x, features_first=True)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], upstream)]


@needs_own
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch", [1, 7, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 192, 260])
def test_every_number_is_that_of_the_dense_matrix(name: str, batch: int) -> None:
    layer = ready(name)
    x, upstream = numbers(batch, layer.in_width, seed=8).t(), numbers(layer.out_width, batch, seed=9)
    assert blocks.is_for(x, layer.factors[0].weight, 27) == (batch >= 16)
    exact = LAYERS[name]().double()
    exact.load_state_dict(layer.state_dict())
    wide = x.double().requires_grad_()
    y = exact.to_dense() @ wide + exact.dense_bias()[:, None]
    expected = [y, *torch.autograd.grad(y, [wide, *exact.parameters()], upstream.double())]
    for one, other in zip(found(layer, x, upstream), expected, strict=True):
        assert torch.equal(one.double(), other)


@needs_own
def test_features_and_gradients_may_be_views_and_the_graph_may_stay() -> None:
    layer = ready("butterfly")
    x = numbers(33, 128, seed=1).t().requires_grad_()
    upstream = numbers(128, 1, seed=2).expand(-1, 33)
    y = layer(x, features_first=True)
    inputs = [x, *layer.parameters()]
    first, again = (torch.autograd.grad(y, inputs, upstream, retain_graph=True) for _ in range(2))
    plain = found(layer, x.contiguous(), upstream.contiguous())[1:]
    for one, other, expected in zip(first, again, plain, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, expected)


@needs_own
@pytest.mark.parametrize("name", LAYERS)
def test_runs_of_a_pack_have_the_bits_of_each_alone(name: str) -> None:
    batch = blocks.IMAGES if name.startswith("low rank") else 70
    layers = [LAYERS[name]() for _ in range(3)]
    for number, parameter in enumerate(parameter for layer in layers for parameter in layer.parameters()):
        torch.nn.init.normal_(parameter, generator=seeded(number))
    x = torch.randn(3, layers[0].in_width, batch, generator=seeded(1))
    upstream = torch.randn(3, layers[0].out_width, batch, generator=seeded(2))
    names = [name for name, _ in layers[0].named_parameters()]
    stacked = {name: torch.stack([layer.get_parameter(name).detach() for layer in layers]) for name in names}
    inputs = [tensor.requires_grad_() for tensor in (x, *stacked.values())]

    def forward(weights: dict[str, Tensor], x_mb: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layers[0], weights, (x_mb,), {"features_first": True})
        return y

    y = call(forward, stacked, x)
    together = [y, *torch.autograd.grad(y, inputs, upstream)]
    for run, layer in enumerate(layers):
        for one, alone in zip(together, found(layer, x[run], upstream[run]), strict=True):
            assert torch.equal(one[run], alone)


@needs_own
@pytest.mark.parametrize("name", ["butterfly of unequal radices", "low rank"])
def test_the_threads_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "GRAIN", 1)
    layer = ready(name)
    x, upstream = (torch.randn(layer.in_width, 128, generator=seeded(seed)) for seed in (1, 2))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(found(layer, x, upstream)[:-1])  # the last is the bias's gradient, which torch sums
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@needs_own
def test_what_ours_take_they_do_take() -> None:
    x, weight = torch.zeros(256, 16), torch.zeros(2, 128, 128)
    assert blocks.is_for(x, weight, 128)
    assert not blocks.is_for(x.double(), weight, 128)
    assert not blocks.is_for(x, weight.double(), 128)
    assert not blocks.is_for(x, weight, 129)
    assert not blocks.is_for(x[:, 1:], weight, 128)
    assert block_diagonal(258, 129)(torch.ones(16, 258)).shape == (16, 258)
    with torch.autocast("cpu", torch.bfloat16):
        assert not blocks.is_for(x, weight, 128)
        assert ready("butterfly")(torch.zeros(128, 16), features_first=True).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("radices", "expected"),
    [
        ([2] * 5, [5]),
        ([2] * 10, [6, 4]),
        ([4] * 5, [3, 2]),
        ([8, 4, 16, 2, 40, 2, 2], [2, 2, 1, 2]),
        ([64], [1]),
        ([1, 1], [2]),
    ],
)
def test_factors_are_applied_together_as_far_as_the_cache_reaches(radices: list[int], expected: list[int]) -> None:
    layer = butterfly(radices)
    parts = blocks.parts_of(*(factor.weight.shape for factor in layer.factors))
    assert [part.end - part.first for part in parts] == expected
    assert [part.first for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == len(radices)
    assert all(list(part.ins) == radices[part.first : part.end] for part in parts)


def test_factors_that_are_no_squares_are_applied_alone() -> None:
    layer = block_tensor_train(2, 3, 2)
    parts = blocks.parts_of(*(factor.weight.shape for factor in layer.factors))
    assert [(part.cells, part.out_width, *part.ins, *part.outs) for part in parts] == [(3, 12, 2, 4), (2, 6, 6, 3)]


EXACT = """
import torch
from mixersweep.layers import blocks
from tests.layers import test_blocks as test
kind = blocks.implementation(torch.device("cpu"))
for name in test.LAYERS:
    for batch in (16, 100, 128):
        blocks.is_for = (lambda *_: True) if kind == "own" else (lambda *_: False)
        layer, x = test.ready(name), test.numbers(test.ready(name).in_width, batch, seed=8)
        y = layer.to_dense() @ x + layer.dense_bias()[:, None]
        inputs, upstream = list(layer.parameters()), test.numbers(*y.shape, seed=9)
        slow = [y, *torch.autograd.grad(y, inputs, upstream)]
        fast, _, *gradients = test.found(layer, x, upstream)
        assert all(map(torch.equal, slow, [fast, *gradients]))
print(kind)
"""


@pytest.mark.parametrize(
    ("variables", "kind"),
    [({"ATEN_CPU_CAPABILITY": "avx2"}, blocks.implementation(CPU)), ({"CC": "false"}, "torch")],
    ids=["avx2", "no compiler"],
)
def test_other_processors_and_none(tmp_path: Path, variables: dict[str, str], kind: str) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run([sys.executable, "-c", EXACT], env=environment, capture_output=True, text=True, timeout=HANGS)
    assert (done.returncode, done.stdout.strip()) == (0, kind), done.stderr
