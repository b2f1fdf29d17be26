"""Conversions between (rows, B, columns) and (features, B): kernels of our own and torch's, number by number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixersweep.layers import IndexPermutation, PermutedKronecker, RandomPermutation, kernels, layouts
from mixersweep.layers.layouts import mb_to_rbc, rbc_to_mb
from tests.layers.test_layers import seeded
from tests.layers.test_nonzeros import whole_numbers

SHAPES = [(1, 1, 1), (3, 5, 7), (4, 16, 16), (2, 17, 15), (5, 33, 48), (1, 100, 40), (40, 3, 1)]
"""Rows, batch, columns: below, at and beyond the size of a tile."""


@pytest.fixture(params=["own", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of kernels in turn."""
    if request.param == "torch":
        monkeypatch.setattr(layouts, "_library", lambda: "a test")
    elif isinstance(reason := kernels.library("layouts"), str):
        pytest.skip(reason)
    return str(request.param)


def positions(width: int) -> tuple[Tensor, Tensor]:
    position = torch.randperm(width, generator=seeded(width))
    return position, position.argsort()


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """All different."""
    count = torch.Size(shape).numel()
    return torch.randperm(count, generator=seeded(count)).view(shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("implementation")
def test_each_feature_is_at_its_position_and_so_is_each_gradient(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    rows, batch, columns = shape
    position, feature_at = positions(rows * columns)
    x_rbc = numbers(rows, batch, columns, dtype=dtype).requires_grad_()
    y = rbc_to_mb(x_rbc, position, feature_at)
    for r in range(rows):
        for c in range(columns):
            assert torch.equal(y[position[r * columns + c]], x_rbc[r, :, c])
    again = mb_to_rbc(y, position, feature_at, rows)
    assert torch.equal(again, x_rbc) and y.is_contiguous() and again.is_contiguous()
    upstream = numbers(rows * columns, batch, dtype=dtype)
    (of_x,) = torch.autograd.grad(y, x_rbc, upstream)
    assert torch.equal(of_x, mb_to_rbc(upstream, position, feature_at, rows)), (
        "what comes from a position goes back to it"
    )
    y = y.detach().requires_grad_()
    (of_y,) = torch.autograd.grad(mb_to_rbc(y, position, feature_at, rows), y, of_x)
    assert torch.equal(of_y, upstream)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.usefixtures("implementation")
def test_several_threads_move_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    position, feature_at = positions(5 * 48)
    x_rbc = numbers(5, 33, 48)
    y = rbc_to_mb(x_rbc, position, feature_at)
    assert torch.equal(y[position], x_rbc.transpose(1, 2).flatten(0, 1))
    assert torch.equal(mb_to_rbc(y, position, feature_at, 5), x_rbc)


@pytest.mark.usefixtures("implementation")
def test_views_are_taken_as_what_they_show() -> None:
    position, feature_at = positions(35)
    x_rbc, y = numbers(6, 5, 7).transpose(0, 1), numbers(6, 35).t()
    assert torch.equal(rbc_to_mb(x_rbc, position, feature_at), rbc_to_mb(x_rbc.contiguous(), position, feature_at))
    assert torch.equal(mb_to_rbc(y, position, feature_at, 5), mb_to_rbc(y.contiguous(), position, feature_at, 5))
    expanded = torch.tensor(2.0).expand(35, 6)  # the gradient of a sum
    assert torch.equal(mb_to_rbc(expanded, position, feature_at, 5), torch.full((5, 6, 7), 2.0))


def test_second_derivatives_are_there() -> None:
    position, feature_at = positions(6)
    x_rbc = torch.randn(2, 4, 3, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: rbc_to_mb(x, position, feature_at) ** 3, x_rbc)
    y = torch.randn(6, 4, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y: mb_to_rbc(y, position, feature_at, 2) ** 3, y)


def test_what_the_compiler_is_told_of_them_is_true() -> None:
    position, feature_at = positions(12)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(layouts._opaque_rbc_to_mb, (numbers(3, 5, 4), position, feature_at), test_utils=tests)
    torch.library.opcheck(layouts._opaque_mb_to_rbc, (numbers(12, 5), position, 3), test_utils=tests)


@pytest.mark.parametrize("rows", [None, 3, 4])
@pytest.mark.usefixtures("implementation")
def test_a_permutation_is_the_same_for_features_in_any_order_in_memory(rows: int | None) -> None:
    permutation = IndexPermutation(torch.randperm(12, generator=seeded(3)), rows=rows)
    x = numbers(12, 5)
    of_rbc = x.view(6, 2, 5).transpose(1, 2).contiguous().transpose(1, 2)
    for given in (x, x.view(4, 3, 5), of_rbc, numbers(5, 12).t(), x.view(3, 4, 5).transpose(0, 1)):
        found = permutation(given, features_first=True)
        assert torch.equal(found.reshape(12, 5), given.reshape(12, 5)[permutation.indices()])
        if rows is not None:
            assert found.shape == (rows, 12 // rows, 5)
            assert found.transpose(1, 2).is_contiguous(), "the (rows, B, columns) that comes next"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.usefixtures("implementation")
def test_a_layer_between_two_conversions_is_its_dense_matrix(tied: bool) -> None:
    before, after = RandomPermutation(35, seeded(1)), RandomPermutation(15, seeded(2), rows=3)
    layer = PermutedKronecker(5, 7, 3, tied=tied, before=before, after=after)
    with torch.no_grad():
        layer.weight.copy_(whole_numbers(*layer.weight.shape, seed=3))
        layer.bias.copy_(whole_numbers(*layer.bias.shape, seed=4))
    x_rbc = whole_numbers(7, 20, 5, seed=5).requires_grad_()
    y = layer(x_rbc.transpose(1, 2), features_first=True)
    dense = layer.to_dense() @ x_rbc.transpose(1, 2).reshape(35, 20) + layer.dense_bias()[:, None]
    assert y.transpose(1, 2).is_contiguous() and y.shape == (3, 5, 20)
    upstream = whole_numbers(15, 20, seed=6)
    inputs = [x_rbc, layer.weight, layer.bias]
    assert torch.equal(y.reshape(15, 20), dense)
    found, expected = (torch.autograd.grad(z.reshape(15, 20), inputs, upstream) for z in (y, dense))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("following", [RandomPermutation(12, seeded(8)), RandomPermutation(12, seeded(9), rows=4)])
def test_one_permutation_and_another_are_one_and_cancel_to_none(following: RandomPermutation) -> None:
    first, x = RandomPermutation(12, seeded(7)), numbers(12, 5)
    both = first.then(following)
    expected = following(first(x, features_first=True), features_first=True)
    assert torch.equal(both(x, features_first=True), expected)
    undone = following.then(IndexPermutation(following.inverse_indices))
    assert not isinstance(undone, IndexPermutation)
    assert undone(x, features_first=True) is x
