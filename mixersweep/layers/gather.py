"""Permute features by a gather whose gradient is a gather by the inverse permutation, instead of a scatter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixersweep.layers import fused, moves
from mixersweep.layers.pack import for_all_runs, is_packed


def gathered(x: Tensor, indices: Tensor, inverse: Tensor, axis: int) -> Tensor:
    """Return ``x.index_select(axis, indices)`` for a permutation; ``inverse`` is its inverse, both (n,) int64."""
    if is_packed():
        return for_all_runs(_along, x, indices, inverse, axis % x.dim())
    y: Tensor = _Gather.apply(x, indices, inverse, axis)
    return y


class _Gather(torch.autograd.Function):
    """A gather along an axis whose gradient is the gather by the inverse permutation.

    For ``torch.compile`` it is opaque: fused with the change of layout before or after, it would move single numbers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor, axis: int) -> Tensor:
        ctx.indices, ctx.inverse, ctx.axis = indices, inverse, axis
        return (_opaque_gather if torch.compiler.is_compiling() else _gather)(x, indices, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return _Gather.apply(gradient, ctx.inverse, ctx.indices, ctx.axis), None, None, None


def gather_runs(x: Tensor, indices: Tensor, inverse: Tensor) -> Tensor:
    """Gather the n features of each of R runs by that run's indices: x is (R, n, ...), indices and inverse (R, n)."""
    if fused.is_for(x):
        return moves.gathered(x, indices, inverse)
    runs, n = indices.shape
    first = n * torch.arange(runs, device=x.device)[:, None]
    flat: Tensor = _Gather.apply(x.flatten(0, 1), (indices + first).flatten(), (inverse + first).flatten(), 0)
    return flat.view(x.shape)


def _along(x: Tensor, indices: Tensor, inverse: Tensor, axis: int) -> Tensor:
    return gather_runs(x.movedim(axis + 1, 1), indices, inverse).movedim(1, axis + 1)


def _gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return x.index_select(axis, indices)


_opaque_gather = torch.library.custom_op("mixersweep::gather", _gather, mutates_args=())
_opaque_gather.register_fake(lambda x, _indices, _axis: torch.empty_like(x, memory_format=torch.contiguous_format))
