"""Products of factors against their dense matrices, written out from the definition: forward, gradients and spread."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixersweep.layers import (
    BesideDiagonal,
    Factors,
    LowRank,
    RandomPermutation,
    SparseMap,
    block_diagonal,
    block_tensor_train,
    butterfly,
    linear_maps,
)
from mixersweep.layers.effective import extremes_of_factors, to_sparse
from mixersweep.models.monarch import monarch_factors


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LAYERS: dict[str, Callable[[], Factors]] = {
    "low rank": lambda: LowRank(13, 4),
    "low rank of one": lambda: LowRank(3, 1),
    "low rank without bias": lambda: LowRank(8, 3, bias=False),
    "blocks": lambda: block_diagonal(15, 5),
    "blocks permuted": lambda: block_diagonal(21, 3, before=RandomPermutation(21, seeded(1))),
    "blocks without bias": lambda: block_diagonal(4, 2, bias=False),
    "btt": lambda: block_tensor_train(5, 3, 1),
    "btt of rank 2": lambda: block_tensor_train(7, 4, 2),
    "btt of rank 3 without bias": lambda: block_tensor_train(3, 3, 3, bias=False),
    "butterfly": lambda: butterfly([2, 2, 2, 2]),
    "butterfly of unequal radices": lambda: butterfly([2, 3, 5]),
    "butterfly without bias": lambda: butterfly([3, 3], bias=False),
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


WIDE: dict[str, Callable[[], Factors]] = {
    "low rank": lambda: LowRank(600, 20),
    "blocks": lambda: block_diagonal(600, 20, before=RandomPermutation(600, seeded(1))),
    "btt": lambda: block_tensor_train(30, 20, 1),
    "btt of rank 3": lambda: block_tensor_train(30, 20, 3),
    "butterfly": lambda: butterfly([2] * 9),
}


@pytest.mark.parametrize("make", WIDE.values(), ids=WIDE)
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


def test_block_tensor_trains_are_their_definition() -> None:
    """y[s, d] = sum of L[s, d, c, k] R[c, k, s, t] X[t, c], by einsum on tables."""
    rows, columns, rank = 7, 4, 2
    layer = ready("btt of rank 2")
    right = layer.factors[0].weight.view(columns, rank, rows, rows)
    left = layer.factors[1].weight.view(rows, columns, columns, rank)
    x = torch.randn(3, rows, columns, dtype=torch.float64, generator=seeded())
    expected = torch.einsum("sdck,ckst,btc->bsd", left, right, x).flatten(1) + layer.dense_bias()
    torch.testing.assert_close(layer(x.flatten(1)), expected, rtol=1e-12, atol=1e-12)


def test_a_block_tensor_train_has_blocks_of_its_rank() -> None:
    for rank in (1, 2, 3):
        layer = block_tensor_train(5, 4, rank).double()
        for number, factor in enumerate(layer.factors):
            factor.initialize(seeded(number))
        matrix = layer.to_dense().detach().view(5, 4, 5, 4)  # s, d, t, c
        assert int(torch.linalg.matrix_rank(matrix[2, :, :, 1])) == rank


@pytest.mark.parametrize("rows", [3, 8])
def test_rank_1_is_a_monarch_matrix_to_the_bit(rows: int) -> None:
    """With the same weights: as dense matrices, and as the layers of the two families compute it."""
    columns = 5
    layer = block_tensor_train(rows, columns, 1, bias=False)
    factors = monarch_factors(rows, rows, columns, tied=False, bias=False)
    for number, (ours, monarchs) in enumerate(zip(layer.factors, factors, strict=True)):
        ours.initialize(seeded(number))
        assert ours.weight_std == monarchs.weight_std
        monarchs.initialize(seeded(number))
        assert torch.equal(ours.weight, monarchs.weight)
    right, left = factors
    assert torch.equal(layer.to_dense(), left.to_dense() @ right.to_dense())
    for factor in (*layer.factors, *factors):  # whole numbers: exact, whichever kernels of the two add them up
        torch.nn.init.normal_(factor.weight, std=3, generator=seeded(8)).data.round_()
    x = torch.randn(6, rows * columns, generator=seeded(9)).mul(9).round()
    assert torch.equal(layer(x), left(right(x)))


def test_two_radices_are_a_block_tensor_train_of_rank_1() -> None:
    one, other = butterfly([6, 4]), block_tensor_train(6, 4, 1)
    other.load_state_dict(one.state_dict())
    assert [type(factor) for factor in one] == [type(factor) for factor in other]
    assert torch.equal(one.to_dense(), other.to_dense())


def test_a_butterfly_of_radices_2_can_be_a_fast_fourier_transform() -> None:
    """Of the reals: the Walsh-Hadamard transform, each of whose factors has the block [[1, 1], [1, -1]] everywhere."""
    layer = butterfly([2] * 4, bias=False).double()
    block = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        for factor in layer.factors:
            factor.weight.copy_(block)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(4):
        hadamard = torch.kron(hadamard, block)
    assert torch.equal(layer.to_dense(), hadamard)
    assert layer.connections == 16 * 4 * 2


def test_blocks_are_on_the_diagonal_and_a_permutation_before_them() -> None:
    plain, permuted = ready("blocks"), ready("blocks permuted")
    assert torch.equal(plain.to_dense(), torch.block_diag(*plain.factors[0].weight))
    order = RandomPermutation(21, seeded(1)).indices()
    expected = torch.zeros(21, 21, dtype=torch.float64)
    expected[:, order] = torch.block_diag(*permuted.factors[0].weight)
    assert torch.equal(permuted.to_dense(), expected)
