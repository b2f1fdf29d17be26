"""A sparse convolution against its own kernel, zeros and all, in float64."""

import math

import pytest
import torch
from torch.nn import functional

from mixersweep.layers import Dense, SparseConv, SparseWeights, draw_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(kept: int | None, size: int = 3, stride: int = 1) -> SparseConv:
    full = 5 * 4 * size**2
    layer = SparseConv(4, 5, size, draw_mask(5, 4 * size**2, kept or full, "exact", seeded(1)), stride=stride).double()
    layer.distribution = "uniform"
    layer.initialize(seeded(2))
    return layer


def masked(layer: SparseConv, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask of the kernel and a dense kernel whose masked entries are junk."""
    mask = torch.zeros(layer.out_width * layer.in_width, dtype=torch.float64)
    mask[layer.positions] = 1
    junk = torch.randn(mask.shape, dtype=torch.float64, generator=seeded(9))
    junk[layer.positions] = layer.weight.detach()
    return mask.view(5, 4, size, size), junk.view(5, 4, size, size).requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "kept"), [(3, 37), (3, 1), (3, None), (1, 11), (1, None)])
def test_forward_and_gradients_equal_those_of_a_masked_kernel(size: int, kept: int | None, stride: int) -> None:
    layer = made(kept, size, stride)
    mask, kernel = masked(layer, size)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=seeded(3)).requires_grad_()
    ours = layer(x)
    theirs = functional.conv2d(x, kernel * mask, stride=stride, padding=size // 2)
    assert ours.shape == (2, 5, math.ceil(7 / stride), math.ceil(6 / stride))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, dtype=torch.float64, generator=seeded(4))
    of_x, of_weight = torch.autograd.grad(ours, [x, layer.weight], upstream)
    their_x, their_kernel = torch.autograd.grad(theirs, [x, kernel], upstream)
    torch.testing.assert_close(of_x, their_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_weight, their_kernel.flatten()[layer.positions], rtol=1e-12, atol=1e-12)
    assert int((their_kernel != 0).sum()) == layer.weight.numel()  # and the others have none


def test_it_is_the_matrix_that_it_says_on_unfolded_patches() -> None:
    layer = made(37)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=seeded(3))
    patches = functional.unfold(x, 3, padding=1)
    product = (layer.to_dense() @ patches).view(2, 5, 7, 6)
    torch.testing.assert_close(layer(x), product, rtol=1e-12, atol=1e-12)
    assert layer.connections == layer.weights == int((layer.to_dense() != 0).sum()) == 37
    assert layer.to_dense().shape == (layer.out_width, layer.in_width)
    assert not layer.dense_bias().any()


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: SparseConv(40, 50, 3, draw_mask(50, 360, 5000, "exact", seeded())), 100.0),
        (lambda: SparseWeights(400, 200, draw_mask(200, 400, 5000, "exact", seeded())), 25.0),
        (lambda: Dense(100, 200), 100.0),
    ],
)
def test_uniform_weights_lie_within_one_over_the_root_of_the_effective_fan_in(layer, fan_in: float) -> None:
    made = layer()
    made.distribution = "uniform"
    made.initialize(seeded())
    bound = 1 / math.sqrt(fan_in)
    for values in [made.weight] + ([] if made.bias is None else [made.bias]):
        assert 0.95 * bound < float(values.abs().max().detach()) <= bound
        assert float(values.detach().mean()) == pytest.approx(0, abs=0.12 * bound)
    assert float(made.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
