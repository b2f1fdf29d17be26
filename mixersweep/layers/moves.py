"""Features of R runs moved, by indices of their own or turned, in one pass over memory by kernels of our own on a GPU.

Each move has the move back by the inverse for its gradient. They copy: what comes out are the same bits.
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
"""Numbers that a program moves; 4 warps are 16 a thread."""
WIDEST = 32
"""Columns of the largest tile of a table: a row of fp32 is 128 bytes, what a warp reads at once."""
LONGEST = 256
"""Numbers of a row that a program takes at once, where rows move as a whole."""


def from_tables(x_rsbc: Tensor, place: Tensor) -> Tensor:
    """(R, rows, B, columns) to (R, rows·columns, B): of each run, feature f becomes row place[f]; (R, features)."""
    y: Tensor = _FromTables.apply(x_rsbc, place)
    return y


def to_tables(x_rmb: Tensor, place: Tensor, rows: int) -> Tensor:
    """(R, rows·columns, B) to (R, rows, B, columns): the way back."""
    y: Tensor = _ToTables.apply(x_rmb, place, rows)
    return y


def gathered(x: Tensor, indices: Tensor, inverse: Tensor) -> Tensor:
    """Rows of each run by its indices, of which ``inverse`` is the inverse permutation: (R, n, ...), (R, n) twice."""
    y: Tensor = _Gathered.apply(x, indices, inverse)
    return y


def turned(x_rnm: Tensor) -> Tensor:
    """The transpose of each run's matrix, contiguous, as is its gradient: (R, n, m) to (R, m, n)."""
    y: Tensor = _Turned.apply(x_rnm)
    return y


class _FromTables(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.place, ctx.rows = place, x.shape[1]
        x, place = _runs_apart(x), _runs_apart(place)
        R, rows, B, C = x.shape
        y = x.new_empty(R, rows * C, B)
        _moved(_kernels().from_table, x, place, y, rows, B, C)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        return to_tables(g, ctx.place, ctx.rows), None


class _ToTables(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, rows: int) -> Tensor:
        ctx.place = place
        x, place = _runs_apart(x), _runs_apart(place)
        R, features, B = x.shape
        y = x.new_empty(R, rows, B, features // rows)
        _moved(_kernels().to_table, x, place, y, rows, B, features // rows)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        return from_tables(g, ctx.place), None, None


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        x = _runs_apart(x)
        R, n, m = x.shape
        y = x.new_empty(R, m, n)
        _moved(_kernels().from_table, x, None, y, 1, n, m)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        (g,) = gradients
        return turned(g)


def _moved(kernel: Any, x: Tensor, place: Tensor | None, y: Tensor, rows: int, B: int, C: int) -> None:
    columns = min(_power(C), WIDEST)
    images = min(_power(B), MOVED // columns)
    if y.numel():
        with fused.on_device_of(x):
            kernel[(rows * math.ceil(B / images) * math.ceil(C / columns), len(x))](
                x,
                place,
                y,
                rows,
                B,
                C,
                _apart(x),
                0 if place is None else _apart(place),
                BLOCK_B=images,
                BLOCK_C=columns,
            )


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor) -> Tensor:
        ctx.indices, ctx.inverse = indices, inverse
        x, indices = _runs_apart(x), _runs_apart(indices)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        R, rows = indices.shape
        length = math.prod(x.shape[2:])
        columns = min(_power(length), LONGEST)
        block = MOVED // columns
        if y.numel():
            with fused.on_device_of(x):
                _kernels().gather[(math.ceil(rows / block) * math.ceil(length / columns), R)](
                    x, indices, y, rows, length, _apart(x), _apart(indices), BLOCK_N=block, BLOCK_L=columns
                )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        return gathered(g, ctx.inverse, ctx.indices), None, None


def _runs_apart(x: Tensor) -> Tensor:
    """What is of one run contiguous, the runs as far apart as they are."""
    return x if x[0].is_contiguous() else x.contiguous()


def _apart(x: Tensor) -> int:
    return x.stride(0) if len(x) > 1 else 0


def _power(length: int) -> int:
    """The next power of two."""
    return 1 << max(length - 1, 0).bit_length()


@cache
def _kernels() -> Any:
    return importlib.import_module("mixersweep.layers.moves_kernels")
