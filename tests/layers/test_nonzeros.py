"""The kernels of our own and torch's, in every case against float64; and what happens where ours cannot be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixersweep.layers import SparseWeights, draw_mask, kernels, nonzeros
from tests.layers.test_layers import seeded
from tests.speed import HANGS

capability = torch.backends.cpu.get_cpu_capability()
needs_vectors = pytest.mark.skipif(capability not in kernels.LANES, reason=f"no kernels for a CPU that is {capability}")
needs_own = pytest.mark.skipif(nonzeros.why_not_own() is not None, reason=f"no kernels: {nonzeros.why_not_own()}")
SIZES = {"tall": (190, 40, 700), "wide": (37, 300, 900), "few": (50, 60, 9), "full": (20, 30, 600), "one": (1, 1, 1)}


@pytest.fixture(params=["own", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of kernels in turn."""
    if request.param == "torch":
        monkeypatch.setattr(nonzeros, "_library", lambda: "a test")
    elif (reason := nonzeros.why_not_own()) is not None:
        pytest.skip(reason)
    return str(request.param)


def whole_numbers(*shape: int, seed: int, most: int = 9) -> Tensor:
    """Small integers, whose sums of products fp32 has exactly: one digit that is wrong shows."""
    return torch.randint(-most, most + 1, shape, generator=seeded(seed)).float()


def layer_of(size: str, seed: int = 3) -> SparseWeights:
    rows, columns, connections = SIZES[size]
    positions = draw_mask(rows, columns, connections, "exact", seeded(seed))
    layer = SparseWeights(columns, rows, positions)
    with torch.no_grad():
        layer.weight.copy_(whole_numbers(connections, seed=4))
        layer.bias.copy_(whole_numbers(rows, seed=5))
    return layer


def products(layer: SparseWeights, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output, and the gradients of x, of the values and of the bias."""
    x = x.clone().requires_grad_()
    y = layer(x, features_first=True)
    return [y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], gradient)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 7, 8, 9, 15, 16, 17, 31, 32, 47, 50, 70, 88, 100, 128, 129, 250, 260])
@pytest.mark.usefixtures("implementation")
def test_every_number_is_that_of_the_dense_matrix(size: str, batch: int) -> None:
    layer = layer_of(size)
    x = whole_numbers(layer.in_width, batch, seed=6)
    gradient = whole_numbers(layer.out_width, batch, seed=7)
    y, of_x, of_values, of_bias = (found.double() for found in products(layer, x, gradient))
    matrix = layer.to_dense().detach().double()
    assert torch.equal(y, matrix @ x.double() + layer.bias.detach().double()[:, None])
    assert torch.equal(of_x, matrix.t() @ gradient.double())
    at = layer.row_of.long(), layer.column_of.long()
    assert torch.equal(of_values, (gradient.double() @ x.double().t())[at])
    assert torch.equal(of_bias, gradient.double().sum(1))


@pytest.mark.usefixtures("implementation")
def test_features_and_gradients_may_be_views() -> None:
    layer = layer_of("tall")
    x = whole_numbers(33, layer.in_width, seed=1).t()
    gradient = whole_numbers(layer.out_width, 1, seed=2).expand(-1, 33)
    for found, plain in zip(
        products(layer, x, gradient), products(layer, x.contiguous(), gradient.contiguous()), strict=True
    ):
        assert torch.equal(found, plain)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_torch_has_nothing_to_say_about_a_matrix_of_nonzeros(device: str) -> None:
    """Neither that its format is young nor that nothing checks it: each version of torch warns of other things."""
    layer = layer_of("tall").to(device)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        matrix = nonzeros._csr(
            layer.row_starts, layer.column_of, layer.weight.detach(), (layer.out_width, layer.in_width)
        )
    finally:
        torch.set_warn_always(always)
    assert torch.equal(matrix.to_dense(), layer.to_dense())


@needs_own
def test_what_ours_take_they_do_take() -> None:
    layer, x = layer_of("wide"), torch.zeros(300, 16)
    assert nonzeros._library_for(x, layer.weight, layer.row_starts) is not None
    assert nonzeros._library_for(x[:, :4], layer.weight, layer.row_starts) is None, "less than a vector"
    assert nonzeros._library_for(x.double(), layer.weight, layer.row_starts) is None
    assert nonzeros._library_for(x, layer.weight.double(), layer.row_starts) is None
    assert nonzeros._library_for(x, layer.weight, layer.row_starts.long()) is None, "more than 2^31 positions"


@needs_own
@pytest.mark.parametrize("batch", [17, 33, 50, 70, 88, 100, 130, 144, 250])
def test_a_product_has_the_same_bits_wherever_in_a_batch_it_is(batch: int) -> None:
    layer = layer_of("tall")
    torch.nn.init.normal_(layer.weight, generator=seeded(3))
    x = torch.randn(layer.in_width, batch, generator=seeded(1))
    structure, values = layer.structure, layer.weight.detach()
    whole = structure.product(values, x, layer.bias.detach())
    for first in range(batch - 15):
        assert torch.equal(
            whole[:, first : first + 16], structure.product(values, x[:, first : first + 16], layer.bias.detach())
        )


@pytest.mark.parametrize(
    ("numbers", "threads"), [(0, 1), (2**15 - 1, 1), (2**16 - 1, 1), (2**16, 2), (3 * 2**15, 3), (2**30, 3)]
)
def test_few_numbers_get_few_threads(numbers: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert kernels.threads_for(numbers) == threads


@needs_own
def test_the_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "GRAIN", 1)
    layer = layer_of("tall")
    x, gradient = torch.randn(40, 75, generator=seeded(1)), torch.randn(190, 75, generator=seeded(2))
    torch.nn.init.normal_(layer.weight, generator=seeded(3))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(products(layer, x, gradient)[:3])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("implementation")
def test_matrices_along_a_diagonal_are_multiplied_as_each_would_be_alone(request: pytest.FixtureRequest) -> None:
    layers = [layer_of("tall", seed) for seed in range(3)]
    for seed, layer in enumerate(layers):
        torch.nn.init.normal_(layer.weight, generator=seeded(seed))
    x = [torch.randn(layer.in_width, 33, generator=seeded(2)) for layer in layers]
    gradient = [torch.randn(layer.out_width, 33, generator=seeded(3)) for layer in layers]
    values = [layer.weight.detach() for layer in layers]
    together = nonzeros.block_diagonal(nonzeros.stack_structures([layer.structure for layer in layers]))
    assert together.shape == (3 * 190, 3 * 40)
    y = together.product(torch.cat(values), torch.cat(x), torch.cat([layer.bias.detach() for layer in layers]))
    of_x, of_values = together.gradients(torch.cat(values), torch.cat(x), torch.cat(gradient))
    places = zip(y.chunk(3), of_x.chunk(3), of_values.chunk(3), strict=True)
    for found, layer, *inputs in zip(places, layers, x, gradient, strict=True):
        for one, alone in zip(found, products(layer, *inputs)[:3], strict=True):
            if request.getfixturevalue("implementation") == "own":
                assert torch.equal(one, alone)
            torch.testing.assert_close(one, alone)


EXACT = """
import torch
from mixersweep.layers import nonzeros
from tests.layers.test_nonzeros import layer_of, test_every_number_is_that_of_the_dense_matrix as test
for batch in (8, 100, 130):
    test("tall", batch)
print(nonzeros.implementation(torch.device("cpu")), nonzeros.why_not_own())
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""


def in_a_process(home: Path, **variables: str) -> list[str]:
    """Multiply in a process of its own: which implementation, why not ours, the number of OpenMP libraries loaded."""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run([sys.executable, "-c", EXACT], env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_own
def test_made_once_for_each_instruction_set_by_any_number_of_processes(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "mixersweep" / "kernels"
    assert in_a_process(tmp_path) == ["own None", "1"], "with torch's OpenMP: a second would wait for the same cores"
    (made,) = cache.iterdir()
    before = made.stat()
    assert in_a_process(tmp_path, CC=os.environ.get("CC", "")) == ["own None", "1"]
    assert made.stat() == before
    assert in_a_process(tmp_path, ATEN_CPU_CAPABILITY="avx2") == ["own None", "1"]
    assert len(list(cache.iterdir())) in (1, 2), "one more, unless this CPU has no AVX-512"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"ATEN_CPU_CAPABILITY": "default"}, "they need AVX2 or AVX-512, and this CPU has "),
        pytest.param({"CC": "false"}, "false cannot make them: exit code 1", marks=needs_vectors),
        pytest.param(
            {"CC": "nowhere/cc", "PATH": ""},
            "they need a C compiler: cc, gcc, clang, or the one that CC names",
            marks=needs_vectors,
        ),
        pytest.param(
            {"CC": f"{sys.executable} -c 'raise SystemExit(\"no such flag\")'"}, "no such flag", marks=needs_vectors
        ),
    ],
    ids=["cpu", "compiler", "none", "flags"],
)
def test_where_ours_cannot_be_made_torchs_serve_and_the_reason_is_known(
    tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    kind, _, found = in_a_process(tmp_path, **variables)[0].partition(" ")
    assert kind == "torch"
    assert reason in found
    assert not list(tmp_path.rglob("*.so"))


@needs_vectors
def test_a_home_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file")
    assert in_a_process(tmp_path)[0].startswith("torch [Errno 20] Not a directory")
