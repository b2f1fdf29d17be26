"""Products of factors against their dense matrices, written out from the definition: forward, gradients and spread."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixersweep.layers import BesideDiagonal, Factors, LowRank, SparseMap, linear_maps
from mixersweep.layers.effective import extremes_of_factors, to_sparse


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LAYERS: dict[str, Callable[[], Factors]] = {
    "low rank": lambda: LowRank(13, 4),
    "low rank of one": lambda: LowRank(3, 1),
    "low rank without bias": lambda: LowRank(8, 3, bias=False),
}
NOT_COUNTED = {LowRank: lambda layer: 2 * layer.out_width}
"""FLOPs that torch counts as none: the diagonal, multiplied entry by entry."""


def ready(name: str) -> Factors:
    layer = LAYERS[name]().double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(number), dtype=torch.float64))
    return layer


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_gradients_equal_those_of_the_dense_matrix(name: str, batch: int, features_first: bool) -> None:
    layer = ready(name)
    x = torch.randn(batch, layer.in_width, dtype=torch.float64, generator=seeded(6)).requires_grad_()
    upstream = torch.randn(batch, layer.out_width, dtype=torch.float64, generator=seeded(7))
    inputs = [x, *layer.parameters()]
    slow = x @ layer.to_dense().t() + layer.dense_bias()
    for given in (x.t(), x.t().contiguous()) if features_first else (x,):
        fast = layer(given, features_first=True).t() if features_first else layer(given)
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
        of_fast = torch.autograd.grad(fast, inputs, upstream)
        of_slow = torch.autograd.grad(slow, inputs, upstream, retain_graph=True)
        for one, other in zip(of_fast, of_slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_connections_are_the_weights_and_multiply_adds_of_all_factors(name: str) -> None:
    layer = ready(name)
    nonzeros = [int((factor.to_dense() != 0).sum()) for factor in layer.factors]
    assert nonzeros == [factor.connections for factor in layer.factors] == [factor.weights for factor in layer.factors]
    assert nonzeros == [to_sparse(factor).nnz for factor in layer.factors]
    assert layer.connections == layer.weights == sum(nonzeros)
    assert layer.weights == sum(parameter.numel() for name, parameter in layer.named_parameters() if "weight" in name)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(5, layer.in_width, dtype=torch.float64))
    uncounted = NOT_COUNTED.get(type(layer), lambda _: 0)(layer)
    assert counter.get_total_flops() == 5 * (2 * layer.connections - uncounted)


@pytest.mark.parametrize("name", LAYERS)
def test_every_factor_as_a_sparse_matrix_is_what_it_is_as_a_dense_one(name: str) -> None:
    for factor in ready(name).factors:
        torch.testing.assert_close(torch.from_numpy(to_sparse(factor).toarray()), factor.to_dense().detach())


@pytest.mark.parametrize("make", [lambda: LowRank(600, 20)], ids=["low rank"])
def test_fresh_factors_keep_the_variance_of_features(make: Callable[[], Factors]) -> None:
    """Each by its own fan-in, as a mean over 200 inputs and all units: within 10%."""
    layer = make()
    for number, factor in enumerate(layer.factors):
        factor.initialize(seeded(number))
    with torch.no_grad():
        y = layer(torch.randn(200, layer.in_width, generator=seeded(9)))
    assert float(y.var()) == pytest.approx(1.0, rel=0.1)


def test_low_rank_is_u_vt_and_a_diagonal() -> None:
    layer = ready("low rank")
    v_transposed, last = (factor.weight.detach() for factor in layer.factors)
    matrix = layer.to_dense().detach()
    diagonal = torch.diag(last[:, 4])
    torch.testing.assert_close(matrix, last[:, :4] @ v_transposed + diagonal, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(matrix) == 13
    assert torch.linalg.matrix_rank(matrix - diagonal) == 4
    assert layer.connections == 2 * 13 * 4 + 13
    (first, beside) = layer.factors
    assert isinstance(beside, BesideDiagonal)
    x = torch.randn(3, 13, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(beside(torch.cat([first(x), x], 1)), layer(x), rtol=1e-12, atol=1e-12)
    assert list(linear_maps(torch.nn.Sequential(layer, torch.nn.GELU()))) == [layer]


@pytest.mark.parametrize("name", LAYERS)
def test_the_largest_singular_value_of_a_wide_product_is_that_of_its_matrix(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = ready(name)
    exact = extremes_of_factors(layer)
    monkeypatch.setattr("mixersweep.layers.effective.PRODUCT_SIDE", 0)
    found = extremes_of_factors(layer)
    assert found.largest == pytest.approx(exact.largest, rel=1e-8)
    assert (found.smallest, exact.smallest is None) == (None, False)


def test_factors_are_maps_of_their_own() -> None:
    assert all(isinstance(factor, SparseMap) for name in LAYERS for factor in LAYERS[name]().factors)
