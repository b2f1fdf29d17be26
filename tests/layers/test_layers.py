"""Every layer against its own dense matrix, written out from the definition: forward and all gradients, float64."""

import math

import pytest
import torch

from mixersweep.layers import (
    ColumnNorm,
    Commutation,
    Dense,
    HashedWeights,
    Identity,
    PermutedKronecker,
    RandomPermutation,
    SparseMap,
    SparseWeights,
    draw_mask,
    transposed,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kronecker(tied: bool, permuted: str, bias: bool = True) -> PermutedKronecker:
    blocks, inputs, outputs = 5, 7, 3
    before, after = {
        "identity": (None, None),
        "commutation": (Commutation(inputs, blocks), Commutation(blocks, outputs)),
        "random": (RandomPermutation(blocks * inputs, seeded(1)), RandomPermutation(blocks * outputs, seeded(2))),
    }[permuted]
    return PermutedKronecker(blocks, inputs, outputs, tied=tied, bias=bias, before=before, after=after)


def sparse(mask: str = "exact", storage: str = "sparse", rescale: str = "init", bias: bool = True) -> SparseWeights:
    positions = draw_mask(11, 13, 37, mask, seeded(3))  # type: ignore[arg-type]
    return SparseWeights(13, 11, positions, storage=storage, rescale=rescale, bias=bias)  # type: ignore[arg-type]


def hashed(sharing: int) -> HashedWeights:
    positions = draw_mask(11, 13, 37, "exact", seeded(3))
    return HashedWeights(13, 11, positions, sharing, seeded(8), bias=True)


LAYERS = {
    "dense": lambda: Dense(6, 4),
    "dense without bias": lambda: Dense(6, 4, bias=False),
    **{
        f"kronecker {permuted} {'tied' if tied else 'untied'}": lambda tied=tied, permuted=permuted: kronecker(
            tied, permuted
        )
        for permuted in ("identity", "commutation", "random")
        for tied in (True, False)
    },
    "kronecker without bias": lambda: kronecker(True, "random", bias=False),
    "kronecker untied without bias": lambda: kronecker(False, "random", bias=False),
    **{
        f"sparse {mask} {storage} {rescale}": lambda mask=mask, storage=storage, rescale=rescale: sparse(
            mask, storage, rescale
        )
        for mask in ("exact", "bernoulli", "fixed_fan_in")
        for storage in ("sparse", "dense")
        for rescale in ("init", "forward", "none")
    },
    "sparse without bias": lambda: sparse(bias=False),
    **{f"hashed by {sharing}": lambda sharing=sharing: hashed(sharing) for sharing in (1, 2, 5, 36, 100)},
}


def ready(name: str) -> SparseMap:
    layer = LAYERS[name]().double()
    layer.initialize(seeded(4))
    with torch.no_grad():  # biases start at zero: give them values that a test can see
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=seeded(5)))
    return layer


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_gradients_equal_those_of_the_dense_matrix(name: str, batch: int) -> None:
    layer = ready(name)
    x = torch.randn(batch, layer.in_width, dtype=torch.float64, generator=seeded(6)).requires_grad_()
    upstream = torch.randn(batch, layer.out_width, dtype=torch.float64, generator=seeded(7))
    inputs = [x, layer.weight] + ([layer.bias] if layer.bias is not None else [])

    fast = layer(x)
    slow = x @ layer.to_dense().t() + layer.dense_bias()

    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    of_fast = torch.autograd.grad(fast, inputs, upstream)
    of_slow = torch.autograd.grad(slow, inputs, upstream)
    for one, other in zip(of_fast, of_slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("name", [name for name in LAYERS if not LAYERS[name]().takes_rbc])
def test_with_features_first_it_is_the_same_map_with_the_same_gradients(name: str, batch: int) -> None:
    layer = ready(name)
    x = torch.randn(batch, layer.in_width, dtype=torch.float64, generator=seeded(6)).requires_grad_()
    upstream = torch.randn(batch, layer.out_width, dtype=torch.float64, generator=seeded(7))
    inputs = [x, layer.weight] + ([layer.bias] if layer.bias is not None else [])
    for given in (x.t(), x.t().contiguous()):
        found = layer(given, features_first=True).reshape(layer.out_width, batch).t()
        torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)
        of_found = torch.autograd.grad(found, inputs, upstream)
        for one, other in zip(of_found, torch.autograd.grad(layer(x), inputs, upstream), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("rows", [1, 5, 7, 35])
@pytest.mark.parametrize("name", [name for name in LAYERS if LAYERS[name]().takes_rbc])
def test_with_the_batch_in_the_middle_it_is_the_same_map_with_the_same_gradients(
    name: str, rows: int, batch: int
) -> None:
    layer = ready(name)
    x = torch.randn(batch, layer.in_width, dtype=torch.float64, generator=seeded(6)).requires_grad_()
    upstream = torch.randn(batch, layer.out_width, dtype=torch.float64, generator=seeded(7))
    inputs = [x, layer.weight] + ([layer.bias] if layer.bias is not None else [])
    x_rbc = x.view(batch, rows, -1).transpose(0, 1)
    for given in (x_rbc, x_rbc.contiguous()):
        found = layer(given, features_first=True)
        assert found.shape[1] == batch
        y = found.transpose(0, 1).flatten(1)
        torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(y, inputs, upstream)
        for one, other in zip(gradients, torch.autograd.grad(layer(x), inputs, upstream), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_transpose_has_first_and_second_derivatives_and_is_contiguous() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.equal(transposed(x), x.t()) and transposed(x).is_contiguous() and transposed(x.t()).is_contiguous()
    assert torch.autograd.gradcheck(transposed, x)
    assert torch.autograd.gradgradcheck(lambda y: transposed(y) ** 2, x)


@pytest.mark.parametrize("width", [1, 2, 33])
def test_a_column_norm_is_a_layer_norm_with_features_first(width: int) -> None:
    rows, columns = torch.nn.LayerNorm(width, eps=1e-3).double(), ColumnNorm(width, eps=1e-3).double()
    for norm in (rows, columns):
        torch.nn.init.normal_(norm.weight, generator=seeded(1))
        torch.nn.init.normal_(norm.bias, generator=seeded(2))
    x = torch.randn(6, width, dtype=torch.float64, generator=seeded(3)).requires_grad_()
    upstream = torch.randn(6, width, dtype=torch.float64, generator=seeded(4))
    slow, fast = rows(x), columns(x.t()).t()
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    of_slow = torch.autograd.grad(slow, [x, rows.weight, rows.bias], upstream)
    of_fast = torch.autograd.grad(fast, [x, columns.weight, columns.bias], upstream)
    for one, other in zip(of_fast, of_slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_connections_are_the_counted_nonzeros_and_weights_the_counted_parameters(name: str) -> None:
    layer = ready(name)
    matrix = layer.to_dense()
    assert matrix.shape == (layer.out_width, layer.in_width)
    assert int((matrix != 0).sum()) == layer.connections
    assert layer.weights == sum(p.numel() for key, p in layer.named_parameters() if key == "weight")


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_draws_the_same_weights_from_the_same_seed_and_nothing_from_the_global_state(name: str) -> None:
    before = torch.get_rng_state()
    one, other = ready(name), ready(name)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_commutation_matrix_transposes() -> None:
    table = torch.arange(12.0).view(3, 4)
    assert torch.equal(Commutation(3, 4)(table.view(1, 12)), table.t().reshape(1, 12))


@pytest.mark.parametrize("permutation", [Identity(12), Commutation(3, 4), RandomPermutation(12, seeded())])
def test_a_permutation_equals_its_matrix_and_its_indices(permutation: Identity) -> None:
    x = torch.randn(5, 12, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    matrix = permutation.to_dense()
    assert torch.equal(matrix @ matrix.t(), torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(permutation(x), x @ matrix.t())
    assert torch.equal(permutation(x), x[:, permutation.indices()])


def test_the_gather_of_a_random_permutation_has_first_and_second_derivatives() -> None:
    permutation = RandomPermutation(6, seeded())
    x = torch.randn(2, 6, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    assert torch.autograd.gradcheck(permutation, x)
    assert torch.autograd.gradgradcheck(lambda y: permutation(y) ** 2, x)


@pytest.mark.parametrize(("rescale", "std"), [("init", 1.0), ("forward", 1.0), ("none", math.sqrt(0.05))])
def test_the_rescalings_give_the_output_variance_they_promise(rescale: str, std: float) -> None:
    width, connections = 400, 8000  # density 0.05
    layer = SparseWeights(width, width, draw_mask(width, width, connections, "exact", seeded()), rescale=rescale)  # type: ignore[arg-type]
    layer.initialize(seeded(1))
    y = layer(torch.randn(500, width, generator=seeded(2)))
    assert float(y.detach().std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(("sharing", "weights"), [(1, 37), (2, 19), (5, 8), (36, 2), (100, 1)])
def test_hashed_weights_are_shared_as_evenly_as_can_be(sharing: int, weights: int) -> None:
    layer = ready(f"hashed by {sharing}")
    assert isinstance(layer, HashedWeights)
    assert (layer.connections, layer.weights) == (37, weights)
    used = torch.bincount(layer.weight_of(), minlength=weights)
    assert int(used.max()) <= sharing and int(used.max() - used.min()) <= 1
    values = layer.to_dense()[layer.row_of.long(), layer.column_of.long()]
    assert torch.equal(values, layer.weight[layer.weight_of()])


def test_hashing_is_uniform_over_positions() -> None:
    """Chi-squared: at each position of a full matrix every weight as often, 5 standard deviations at the most."""
    size, sharing, trials = 12, 4, 3000
    positions, generator = torch.arange(size), seeded()
    hits = torch.zeros(size, size // sharing, dtype=torch.float64)
    for _ in range(trials):
        layer = HashedWeights(size, 1, positions, sharing, generator, bias=False)
        hits[torch.arange(size), layer.weight_of()] += 1
    expected = trials / (size // sharing)
    chi_squared = float(((hits - expected) ** 2 / expected).sum())
    freedom = (size - 1) * (size // sharing - 1)
    assert chi_squared < freedom * size / (size - 1) + 5 * math.sqrt(2 * freedom)
