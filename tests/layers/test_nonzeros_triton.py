"""The kernels in Triton: by its interpreter wherever Triton is, compiled where there is a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from mixersweep.layers import SparseWeights, draw_mask, nonzeros
from tests.layers.test_layers import seeded
from tests.speed import HANGS

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

OLDER = "only 0-dimensional arrays can be converted"
ROUTED = """
import torch
from types import ModuleType
from mixersweep.layers import nonzeros, nonzeros_triton
from tests.layers.test_nonzeros import test_every_number_is_that_of_the_dense_matrix as test
calls = []
nonzeros._library_for = lambda x, values, starts: calls.append(x) or nonzeros_triton
test("tall", 7)
print(len(calls))
"""


def interpreted(*arguments: str) -> str:
    """What a process says whose kernels are interpreted: Triton has to know when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    if OLDER in done.stdout + done.stderr:
        pytest.skip("this Triton's interpreter is older than this NumPy")  # Triton 3.6 with NumPy 2.4
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_every_number_is_right_and_the_same_in_any_company() -> None:
    found = json.loads(interpreted("-m", "tests.layers.triton_checks"))
    assert len(found) > 40
    assert {check: problem for check, problem in found.items() if problem} == {}


@needs_triton
def test_a_layer_is_multiplied_by_them() -> None:
    assert int(interpreted("-c", ROUTED)) == 2  # for its product, and for its gradients


def test_without_triton_torchs_serve_and_the_reason_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    nonzeros._load_triton.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "mixersweep.layers.nonzeros_triton", raising=False)
    monkeypatch.delattr("mixersweep.layers.nonzeros_triton", raising=False)
    try:
        reason = nonzeros.why_not_own(torch.device("cuda", 0))
        assert reason is not None
        assert reason.startswith("ModuleNotFoundError: import of triton halted")
        assert nonzeros.implementation(torch.device("cuda", 0)) == "torch"
    finally:
        nonzeros._load_triton.cache_clear()


def test_a_cpu_never_asks_for_triton() -> None:
    program = (
        "import sys, torch; from mixersweep.layers import SparseWeights; sys.modules['triton'] = None\n"
        "layer = SparseWeights(4, 3, torch.tensor([1, 5, 11])); layer(torch.ones(2, 4)).sum().backward()\n"
        "assert 'mixersweep.layers.nonzeros_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=HANGS)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_every_number_is_right_and_the_same_in_any_company() -> None:
    from tests.layers.triton_checks import outcomes

    assert nonzeros.why_not_own(torch.device("cuda")) is None
    found = outcomes(torch.device("cuda"))
    assert {check: problem for check, problem in found.items() if problem} == {}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("width", "connections"), [(512, 2**14), (1024, 2**15), (4096, 2**16), (65536, 2**17)])
@pytest.mark.parametrize("batch", [96, 128, 512])
def test_on_a_gpu_a_layer_is_its_float64_twin_and_the_same_again_alone_and_in_a_pack(
    width: int, connections: int, batch: int
) -> None:
    runs = []
    for seed in range(3):
        layer = SparseWeights(width, width, draw_mask(width, width, connections, "exact", seeded(seed)))
        layer.initialize(seeded(seed))
        runs.append(layer)
    x, gradient = torch.randn(3, width, batch, generator=seeded(7)), torch.randn(3, width, batch, generator=seeded(8))

    def products(layer: SparseWeights, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = layer(x, features_first=True)
        return [y, *torch.autograd.grad(y, [x, layer.weight], gradient)]

    twins = [products(layer.double(), x[run].double(), gradient[run].double()) for run, layer in enumerate(runs)]
    alone = []
    for run, layer in enumerate(runs):
        layer.float().cuda()
        inputs = x[run].cuda(), gradient[run].cuda()
        first, *others = (products(layer, *inputs) for _ in range(3))
        for found, exact in zip(first, twins[run], strict=True):
            torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-5, atol=1e-4)
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
        alone.append(first)
    pack = nonzeros.block_diagonal(nonzeros.stack_structures([layer.structure for layer in runs]))
    values = torch.cat([layer.weight.detach() for layer in runs])
    y = pack.product(values, x.flatten(0, 1).cuda(), torch.cat([layer.bias.detach() for layer in runs]))
    rest = pack.gradients(values, x.flatten(0, 1).cuda(), gradient.flatten(0, 1).cuda())
    for name, together in enumerate((y, *rest)):
        for run, found in enumerate(together.unflatten(0, (3, -1))):
            assert torch.equal(found, alone[run][name])


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_graph_replays_them() -> None:
    layer = SparseWeights(64, 48, draw_mask(48, 64, 300, "exact", seeded(0))).cuda()
    layer.initialize(seeded(1))
    structure, values = layer.structure, layer.weight.detach()
    x, gradient = torch.randn(64, 128, device="cuda"), torch.randn(48, 128, device="cuda")
    expected = structure.product(values, x), *structure.gradients(values, x, gradient)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = structure.product(values, x), *structure.gradients(values, x, gradient)
    for tensor in found:
        tensor.zero_()
    graph.replay()
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
