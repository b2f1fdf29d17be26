"""Convert between the layouts (rows, B, columns) and (rows·columns, B), and permute the features on the way.

It takes one pass over memory by kernels of our own, ``layouts.c`` on a CPU and ``moves.py`` on a GPU, where they are
available, and torch's operations elsewhere.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mixersweep.layers import fused, kernels, moves
from mixersweep.layers.gather import gather_runs
from mixersweep.layers.kernels import address
from mixersweep.layers.pack import for_all_runs, is_packed


def rbc_to_mb(x_rbc: Tensor, position: Tensor, feature_at: Tensor) -> Tensor:
    """Convert (rows, B, columns) to (rows·columns, B): feature f, counted row by row, becomes row position[f].

    ``position`` and its inverse ``feature_at`` are (rows·columns,) int64.
    """
    if is_packed():
        return for_all_runs(_rbc_to_mb_of_runs, x_rbc, position, feature_at)
    y: Tensor = _RbcToMb.apply(x_rbc, position, feature_at)
    return y


def mb_to_rbc(x: Tensor, position: Tensor, feature_at: Tensor, rows: int) -> Tensor:
    """Convert (rows·columns, B) to (rows, B, columns), the inverse of ``rbc_to_mb``."""
    if is_packed():
        return for_all_runs(_mb_to_rbc_of_runs, x, position, feature_at, rows)
    y_rbc: Tensor = _MbToRbc.apply(x, position, feature_at, rows)
    return y_rbc


class _RbcToMb(torch.autograd.Function):
    """``rbc_to_mb``, whose gradient is ``mb_to_rbc`` with the same positions."""

    @staticmethod
    def forward(ctx: Any, x_rbc: Tensor, position: Tensor, feature_at: Tensor) -> Tensor:
        ctx.positions, ctx.rows = (position, feature_at), x_rbc.shape[0]
        return (_opaque_rbc_to_mb if torch.compiler.is_compiling() else _rbc_to_mb)(x_rbc, position, feature_at)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        position, feature_at = ctx.positions
        return mb_to_rbc(gradient, position, feature_at, ctx.rows), None, None


class _MbToRbc(torch.autograd.Function):
    """``mb_to_rbc``, whose gradient is ``rbc_to_mb`` with the same positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, position: Tensor, feature_at: Tensor, rows: int) -> Tensor:
        ctx.positions = position, feature_at
        return (_opaque_mb_to_rbc if torch.compiler.is_compiling() else _mb_to_rbc)(x, position, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        position, feature_at = ctx.positions
        return rbc_to_mb(gradient, position, feature_at), None, None, None


def _rbc_to_mb_of_runs(x_rsbc: Tensor, position: Tensor, feature_at: Tensor) -> Tensor:
    """Convert x (R, rows, B, columns) of R runs to (R, features, B); position and feature_at are (R, features)."""
    if fused.is_for(x_rsbc):
        return moves.rbc_to_mb(x_rsbc, position)
    return gather_runs(x_rsbc.transpose(2, 3).flatten(1, 2), feature_at, position)


def _mb_to_rbc_of_runs(x_rmb: Tensor, position: Tensor, feature_at: Tensor, rows: int) -> Tensor:
    """Convert x (R, features, B) of R runs to (R, rows, B, columns)."""
    if fused.is_for(x_rmb):
        return moves.mb_to_rbc(x_rmb, position, rows)
    moved: Tensor = gather_runs(x_rmb, position, feature_at).unflatten(1, (rows, -1))
    return moved.transpose(2, 3).contiguous()


def _rbc_to_mb(x_rbc: Tensor, position: Tensor, feature_at: Tensor) -> Tensor:
    library = _library_for(x_rbc)
    if library is None:
        return torch_rbc_to_mb(x_rbc, feature_at)
    rows, batch, columns = x_rbc.shape
    y = x_rbc.new_empty(rows * columns, batch)
    tensors = position, x_rbc.contiguous(), y
    library.mixersweep_rbc_to_mb(rows, batch, columns, kernels.threads_for(y.numel()), *map(address, tensors))
    return y


def _mb_to_rbc(x: Tensor, position: Tensor, rows: int) -> Tensor:
    library, batch = _library_for(x), x.shape[1]
    if library is None:
        return torch_mb_to_rbc(x, position, rows)
    y_rbc = x.new_empty(rows, batch, x.shape[0] // rows)
    tensors = position, x.contiguous(), y_rbc
    library.mixersweep_mb_to_rbc(*y_rbc.shape, kernels.threads_for(x.numel()), *map(address, tensors))
    return y_rbc


def torch_rbc_to_mb(x_rbc: Tensor, feature_at: Tensor) -> Tensor:
    """Compute ``rbc_to_mb`` by torch's operations."""
    return x_rbc.transpose(1, 2).flatten(0, 1).index_select(0, feature_at)


def torch_mb_to_rbc(x: Tensor, position: Tensor, rows: int) -> Tensor:
    """Compute ``mb_to_rbc`` by torch's operations."""
    return x.index_select(0, position).view(rows, -1, x.shape[1]).transpose(1, 2).contiguous()


# Opaque to torch.compile: fused with the operations before or after, they would move single numbers.
_opaque_rbc_to_mb = torch.library.custom_op("mixersweep::rbc_to_mb", _rbc_to_mb, mutates_args=())
_opaque_rbc_to_mb.register_fake(lambda x, _p, _f: x.new_empty(x.shape[0] * x.shape[2], x.shape[1]))
_opaque_mb_to_rbc = torch.library.custom_op("mixersweep::mb_to_rbc", _mb_to_rbc, mutates_args=())
_opaque_mb_to_rbc.register_fake(lambda x, _p, rows: x.new_empty(rows, x.shape[1], x.shape[0] // rows))


def _library_for(x: Tensor) -> ctypes.CDLL | None:
    """Return the kernels of our own where they are available and take x, fp32 on a CPU; else None."""
    library = _library() if x.is_cpu and x.dtype == torch.float32 else None
    return None if isinstance(library, str) else library


@cache
def _library() -> ctypes.CDLL | str:
    """Return ``layouts.c``, compiled and loaded, or the reason why it is unavailable."""
    takes = [*[ctypes.c_int64] * 3, ctypes.c_int, *[ctypes.c_void_p] * 3]
    return kernels.library("layouts", mixersweep_rbc_to_mb=takes, mixersweep_mb_to_rbc=takes)
