"""Tables of features, (rows, batch, columns), and the same features first, (rows·columns, batch), each in a place of
its own. One is permuted on the way to the other, in one pass over memory where there are kernels of our own.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mixersweep.layers import fused, kernels, moves
from mixersweep.layers.gather import gathered_of_runs
from mixersweep.layers.kernels import address
from mixersweep.layers.pack import is_packed, stacked


def from_table(x_rbc: Tensor, place: Tensor, feature_at: Tensor) -> Tensor:
    """(rows, B, columns) to (rows·columns, B): feature f of the table, row by row, becomes row place[f].

    ``feature_at`` is the inverse of ``place``; both are int64.
    """
    if is_packed():
        return stacked(_from_tables, x_rbc, place, feature_at)
    y: Tensor = _FromTable.apply(x_rbc, place, feature_at)
    return y


def to_table(x: Tensor, place: Tensor, feature_at: Tensor, rows: int) -> Tensor:
    """(rows·columns, B) to (rows, B, columns): the way back."""
    if is_packed():
        return stacked(_to_tables, x, place, feature_at, rows)
    y_rbc: Tensor = _ToTable.apply(x, place, feature_at, rows)
    return y_rbc


class _FromTable(torch.autograd.Function):
    """Its gradient goes the other way by the same places."""

    @staticmethod
    def forward(ctx: Any, x_rbc: Tensor, place: Tensor, feature_at: Tensor) -> Tensor:
        ctx.places, ctx.rows = (place, feature_at), x_rbc.shape[0]
        return (_opaque_from if torch.compiler.is_compiling() else _from_table)(x_rbc, place, feature_at)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        place, feature_at = ctx.places
        return to_table(gradient, place, feature_at, ctx.rows), None, None


class _ToTable(torch.autograd.Function):
    """Its gradient goes the other way by the same places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, feature_at: Tensor, rows: int) -> Tensor:
        ctx.places = place, feature_at
        return (_opaque_to if torch.compiler.is_compiling() else _to_table)(x, place, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        place, feature_at = ctx.places
        return from_table(gradient, place, feature_at), None, None, None


def _from_tables(x_rsbc: Tensor, place: Tensor, feature_at: Tensor) -> Tensor:
    """Of R runs: (R, rows, B, columns), (R, features) twice, to (R, features, B)."""
    if fused.is_for(x_rsbc):
        return moves.from_tables(x_rsbc, place)
    return gathered_of_runs(x_rsbc.transpose(2, 3).flatten(1, 2), feature_at, place)


def _to_tables(x_rmb: Tensor, place: Tensor, feature_at: Tensor, rows: int) -> Tensor:
    """Of R runs: the way back."""
    if fused.is_for(x_rmb):
        return moves.to_tables(x_rmb, place, rows)
    moved: Tensor = gathered_of_runs(x_rmb, place, feature_at).unflatten(1, (rows, -1))
    return moved.transpose(2, 3).contiguous()


def _from_table(x_rbc: Tensor, place: Tensor, feature_at: Tensor) -> Tensor:
    library = _library_for(x_rbc)
    if library is None:
        return torch_from_table(x_rbc, feature_at)
    rows, batch, columns = x_rbc.shape
    y = x_rbc.new_empty(rows * columns, batch)
    tensors = place, x_rbc.contiguous(), y
    library.mixersweep_from_table(rows, batch, columns, kernels.threads_for(y.numel()), *map(address, tensors))
    return y


def _to_table(x: Tensor, place: Tensor, rows: int) -> Tensor:
    library, batch = _library_for(x), x.shape[1]
    if library is None:
        return torch_to_table(x, place, rows)
    y_rbc = x.new_empty(rows, batch, x.shape[0] // rows)
    tensors = place, x.contiguous(), y_rbc
    library.mixersweep_to_table(*y_rbc.shape, kernels.threads_for(x.numel()), *map(address, tensors))
    return y_rbc


def torch_from_table(x_rbc: Tensor, feature_at: Tensor) -> Tensor:
    """``from_table`` by torch's operations."""
    return x_rbc.transpose(1, 2).flatten(0, 1).index_select(0, feature_at)


def torch_to_table(x: Tensor, place: Tensor, rows: int) -> Tensor:
    """``to_table`` by torch's operations."""
    return x.index_select(0, place).view(rows, -1, x.shape[1]).transpose(1, 2).contiguous()


# A compiler sees them as they are: fused with what is before or after, they would move single numbers.
_opaque_from = torch.library.custom_op("mixersweep::from_table", _from_table, mutates_args=())
_opaque_from.register_fake(lambda x, _p, _f: x.new_empty(x.shape[0] * x.shape[2], x.shape[1]))
_opaque_to = torch.library.custom_op("mixersweep::to_table", _to_table, mutates_args=())
_opaque_to.register_fake(lambda x, _p, rows: x.new_empty(rows, x.shape[1], x.shape[0] // rows))


def _library_for(x: Tensor) -> ctypes.CDLL | None:
    """The kernels of our own, for what they take."""
    library = _library() if x.is_cpu and x.dtype == torch.float32 else None
    return None if isinstance(library, str) else library


@cache
def _library() -> ctypes.CDLL | str:
    """``tables.c``, or why there is none."""
    takes = [*[ctypes.c_int64] * 3, ctypes.c_int, *[ctypes.c_void_p] * 3]
    return kernels.library("tables", mixersweep_from_table=takes, mixersweep_to_table=takes)
