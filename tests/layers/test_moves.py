"""Features of a pack's runs moved by kernels of our own, bit by bit, on a GPU or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from mixersweep.layers import fused, gather, layouts, moves, pack, transposed
from tests.layers.interpreted import DEVICE, INTERPRETED, needs_a_gpu, on_its_device, run_interpreted

SHAPES = [(1, 1, 1), (3, 5, 7), (2, 70, 15), (1, 9, 40), (9, 3, 1)]
SHAPES += [] if INTERPRETED else [(32, 128, 32), (25, 128, 26), (64, 130, 64), (1, 128, 3000)]
"""Rows, batch, columns: below, at and beyond the size of a tile."""
of_all = pytest.mark.parametrize("shape", SHAPES, ids=str)
of_packs = pytest.mark.parametrize(
    ("R", "dtype"), [(1, torch.float32), (3, torch.float32), (2, torch.float16), (2, torch.float64)], ids=str
)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """All different, in fp32."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return order.view(shape).to(DEVICE, dtype)


def positions(R: int, width: int) -> tuple[Tensor, Tensor]:
    """Of each run its own permutation, and the inverse."""
    drawn = [torch.randperm(width, generator=torch.Generator().manual_seed(seed)) for seed in range(R)]
    position = torch.stack(drawn).to(DEVICE)
    return position, position.argsort(1)


def gradient(y: Tensor, x: Tensor, upstream: Tensor) -> Tensor:
    (of_x,) = torch.autograd.grad(y, x, upstream)
    return of_x


@on_its_device
@of_all
@of_packs
def test_features_go_to_their_positions_and_back(shape: tuple[int, int, int], R: int, dtype: torch.dtype) -> None:
    rows, batch, columns = shape
    position, feature_at = positions(R, rows * columns)
    x = numbers(R, *shape, dtype=dtype).requires_grad_()
    y = moves.rbc_to_mb(x, position)
    plain = x.detach().transpose(2, 3).flatten(1, 2)
    assert torch.equal(y, torch.stack([plain[run][feature_at[run]] for run in range(R)]))
    assert torch.equal(moves.mb_to_rbc(y, position, rows), x)
    upstream = numbers(R, rows * columns, batch, dtype=dtype)
    assert torch.equal(gradient(y, x, upstream), moves.mb_to_rbc(upstream, position, rows))
    back = upstream.clone().requires_grad_()
    assert torch.equal(gradient(moves.mb_to_rbc(back, position, rows), back, x.detach()), y)


@on_its_device
@of_all
@of_packs
def test_rows_are_gathered(shape: tuple[int, int, int], R: int, dtype: torch.dtype) -> None:
    indices, inverse = positions(R, shape[0])
    x = numbers(R, *shape, dtype=dtype).requires_grad_()
    y = moves.gathered(x, indices, inverse)
    assert torch.equal(y, torch.stack([x[run][indices[run]] for run in range(R)]))
    assert torch.equal(gradient(y, x, y.detach()), x)


@on_its_device
@of_all
@of_packs
def test_matrices_are_transposed(shape: tuple[int, int, int], R: int, dtype: torch.dtype) -> None:
    x = numbers(R, shape[0] * shape[1], shape[2], dtype=dtype).requires_grad_()
    y = moves.transposed(x)
    assert torch.equal(y, x.mT) and y.is_contiguous()
    of_x = gradient(y, x, y.detach())
    assert torch.equal(of_x, x) and of_x.is_contiguous()


@on_its_device
def test_views_and_what_all_runs_share_are_taken_as_what_they_show() -> None:
    position, feature_at = positions(3, 35)
    wide, transposed = numbers(3, 9, 6, 7)[:, :5], numbers(3, 6, 35).mT
    shared = numbers(1, 35, 6).expand(3, 35, 6)
    assert torch.equal(moves.rbc_to_mb(wide, position), moves.rbc_to_mb(wide.clone(), position))
    for x in (transposed, shared):
        assert torch.equal(moves.mb_to_rbc(x, position, 5), moves.mb_to_rbc(x.clone(), position, 5))
        assert torch.equal(moves.gathered(x, position, feature_at), moves.gathered(x.clone(), position, feature_at))
    same = position[:1].expand_as(position)
    assert torch.equal(moves.mb_to_rbc(transposed, same, 5), moves.mb_to_rbc(transposed, same.clone(), 5))


@on_its_device
def test_second_derivatives_are_there() -> None:
    position, feature_at = positions(2, 6)
    x_rbc, x = numbers(2, 2, 4, 3, dtype=torch.float64), numbers(2, 6, 4, dtype=torch.float64)
    for move, given in (
        (lambda x: moves.rbc_to_mb(x, position), x_rbc),
        (lambda x: moves.mb_to_rbc(x, position, 2), x),
        (lambda x: moves.gathered(x, position, feature_at), x),
        (moves.transposed, x),
    ):
        given = given.clone().requires_grad_()
        (first,) = torch.autograd.grad((move(given) ** 3).sum(), given, create_graph=True)
        assert torch.equal(gradient(first, given, torch.ones_like(given)), 6 * given)


@on_its_device
@pytest.mark.parametrize("name", ["rbc_to_mb", "mb_to_rbc", "gathered", "transposed"])
def test_the_layers_of_a_pack_move_by_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    position, feature_at = positions(3, 35)
    x_rbc, x = numbers(3, 5, 6, 7), numbers(3, 35, 6)

    def moved() -> list[Tensor]:
        given = {
            "rbc_to_mb": (layouts.rbc_to_mb, x_rbc, position, feature_at),
            "mb_to_rbc": (lambda *of_run: layouts.mb_to_rbc(*of_run, 5), x, position, feature_at),
            "transposed": (transposed, x),
            "gathered": (lambda *of_run: gather.gathered(*of_run, 0), x, position, feature_at),
        }
        function, *tensors = given[name]
        inputs = [tensors[0].clone().requires_grad_(), *tensors[1:]]
        y = pack.call(function, *inputs)
        return [y, gradient(y, inputs[0], y.detach().square())]

    monkeypatch.setattr(fused, "is_for", lambda _: False)
    expected = moved()
    seen = []
    ours = getattr(moves, name)
    monkeypatch.setattr(fused, "is_for", lambda _: True)
    monkeypatch.setattr(moves, name, lambda *given: seen.append(1) or ours(*given))
    assert all(torch.equal(*both) for both in zip(moved(), expected, strict=True))
    assert seen


@pytest.mark.gpu
@needs_a_gpu
def test_moves_go_into_a_cuda_graph() -> None:
    position, feature_at = positions(3, 1024)
    x_rbc, x = numbers(3, 32, 128, 32), numbers(3, 1024, 128)

    def moved() -> list[Tensor]:
        y = moves.rbc_to_mb(x_rbc, position), moves.mb_to_rbc(x, position, 32), moves.gathered(x, position, feature_at)
        return list(y)

    expected = moved()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = moved()
    for each in captured:
        each.zero_()
    graph.replay()
    assert all(torch.equal(*both) for both in zip(captured, expected, strict=True))


def test_the_same_where_triton_interprets_its_kernels() -> None:
    assert run_interpreted(__file__) > 20
