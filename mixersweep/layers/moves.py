"""Permute, transpose and convert features of R runs in one pass over memory, by Triton kernels of our own on a GPU.

The gradient of each move is the inverse move. Moves only copy numbers, so every bit is kept.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mixersweep.layers import fused

MOVED = 2048
"""The numbers that a program moves: with 4 warps, 16 a thread."""
WIDEST = 32
"""The most columns of a tile: a row of fp32 is then 128 bytes, what a warp reads at once."""
LONGEST = 256
"""The most numbers of a row that a program of ``gathered`` moves at once."""


def rbc_to_mb(x_rsbc: Tensor, position: Tensor) -> Tensor:
    """Convert (R, rows, B, columns) to (R, rows·columns, B): feature f of run r becomes its row position[r, f]."""
    y: Tensor = _RbcToMb.apply(x_rsbc, position)
    return y


def mb_to_rbc(x_rmb: Tensor, position: Tensor, rows: int) -> Tensor:
    """Convert (R, rows·columns, B) to (R, rows, B, columns), the inverse of ``rbc_to_mb``."""
    y: Tensor = _MbToRbc.apply(x_rmb, position, rows)
    return y


def gathered(x: Tensor, indices: Tensor, inverse: Tensor) -> Tensor:
    """Permute the rows of x (R, n, ...) by the indices (R, n) of each run; ``inverse`` is their inverse, (R, n)."""
    y: Tensor = _Gathered.apply(x, indices, inverse)
    return y


def transposed(x_rnm: Tensor) -> Tensor:
    """Return the contiguous transpose (R, m, n) of each run's matrix (R, n, m); its gradient is contiguous too."""
    y: Tensor = _Transposed.apply(x_rnm)
    return y


class _RbcToMb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, position: Tensor) -> Tensor:
        ctx.position, ctx.rows = position, x.shape[1]
        x, position = _contiguous_per_run(x), _contiguous_per_run(position)
        R, rows, B, C = x.shape
        y = x.new_empty(R, rows * C, B)
        _launch(_kernels().rbc_to_mb, x, position, y, rows, B, C)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        return mb_to_rbc(g, ctx.position, ctx.rows), None


class _MbToRbc(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, position: Tensor, rows: int) -> Tensor:
        ctx.position = position
        x, position = _contiguous_per_run(x), _contiguous_per_run(position)
        R, features, B = x.shape
        y = x.new_empty(R, rows, B, features // rows)
        _launch(_kernels().mb_to_rbc, x, position, y, rows, B, features // rows)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        return rbc_to_mb(g, ctx.position), None, None


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        x = _contiguous_per_run(x)
        R, n, m = x.shape
        y = x.new_empty(R, m, n)
        _launch(_kernels().rbc_to_mb, x, None, y, 1, n, m)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        (g,) = gradients
        return transposed(g)


def _launch(kernel: Any, x: Tensor, position: Tensor | None, y: Tensor, rows: int, B: int, C: int) -> None:
    columns = min(_next_power_of_two(C), WIDEST)
    images = min(_next_power_of_two(B), MOVED // columns)
    if y.numel():
        with fused.on_device_of(x):
            kernel[(rows * math.ceil(B / images) * math.ceil(C / columns), len(x))](
                x,
                position,
                y,
                rows,
                B,
                C,
                _run_stride(x),
                0 if position is None else _run_stride(position),
                BLOCK_B=images,
                BLOCK_C=columns,
            )


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor) -> Tensor:
        ctx.indices, ctx.inverse = indices, inverse
        x, indices = _contiguous_per_run(x), _contiguous_per_run(indices)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        R, rows = indices.shape
        length = math.prod(x.shape[2:])
        columns = min(_next_power_of_two(length), LONGEST)
        block = MOVED // columns
        if y.numel():
            with fused.on_device_of(x):
                _kernels().gather[(math.ceil(rows / block) * math.ceil(length / columns), R)](
                    x, indices, y, rows, length, _run_stride(x), _run_stride(indices), BLOCK_N=block, BLOCK_L=columns
                )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        return gathered(g, ctx.inverse, ctx.indices), None, None


def _contiguous_per_run(x: Tensor) -> Tensor:
    """Return x with the numbers of each run contiguous; runs may stay far apart."""
    return x if x[0].is_contiguous() else x.contiguous()


def _run_stride(x: Tensor) -> int:
    return x.stride(0) if len(x) > 1 else 0


def _next_power_of_two(length: int) -> int:
    """Return the least power of two that is at least ``length``."""
    return 1 << max(length - 1, 0).bit_length()


@cache
def _kernels() -> Any:
    return importlib.import_module("mixersweep.layers.moves_kernels")
