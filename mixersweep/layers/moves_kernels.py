# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
"""The Triton kernels behind ``moves.py``, imported at the first move, so that Triton is needed only there.

They only copy. Memory is read and written in whole rows, or in stretches of rows that a warp moves at once.
"""

import triton
import triton.language as tl


@triton.jit
def rbc_to_mb(
    x_ptr, position_ptr, y_ptr, rows, B, C, x_stride, position_stride, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Copy a tile of x (R, rows, B, C) to y (R, rows C, B): feature f to row position[f], or f without positions."""
    run, row, images, columns, live = _cell(B, C, BLOCK_B, BLOCK_C)
    at = (row * B + images[:, None]) * C + columns[None, :]
    tile = tl.load(x_ptr + run * x_stride + at, mask=live)
    position = row * C + columns
    if position_ptr is not None:
        position = tl.load(position_ptr + run * position_stride + position, mask=columns < C, other=0)
    to = position[:, None] * B + images[None, :]
    tl.store(y_ptr + run * rows * B * C + to, tl.trans(tile), mask=tl.trans(live))


@triton.jit
def mb_to_rbc(
    x_ptr, position_ptr, y_ptr, rows, B, C, x_stride, position_stride, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Copy a tile of y (R, rows, B, C) from x (R, rows C, B): feature f from row position[f]."""
    run, row, images, columns, live = _cell(B, C, BLOCK_B, BLOCK_C)
    position = tl.load(position_ptr + run * position_stride + row * C + columns, mask=columns < C, other=0)
    at = position[:, None] * B + images[None, :]
    tile = tl.load(x_ptr + run * x_stride + at, mask=tl.trans(live))
    to = (row * B + images[:, None]) * C + columns[None, :]
    tl.store(y_ptr + run * rows * B * C + to, tl.trans(tile), mask=live)


@triton.jit
def _cell(B, C, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the run, row, images and columns that a program moves, and which of them exist."""
    across = tl.cdiv(C, BLOCK_C)
    cells = tl.cdiv(B, BLOCK_B) * across
    cell = tl.program_id(0) % cells
    row = (tl.program_id(0) // cells).to(tl.int64)
    images = (cell // across) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = (cell % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.program_id(1).to(tl.int64), row, images, columns, (images < B)[:, None] & (columns < C)[None, :]


@triton.jit
def gather(
    x_ptr, indices_ptr, y_ptr, rows, length, x_stride, indices_stride, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr
):
    """Copy some rows of y (R, rows, length): row i is row indices[i] of x."""
    across = tl.cdiv(length, BLOCK_L)
    run = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) // across) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (tl.program_id(0) % across) * BLOCK_L + tl.arange(0, BLOCK_L)
    live = (row < rows)[:, None] & (columns < length)[None, :]
    index = tl.load(indices_ptr + run * indices_stride + row, mask=row < rows, other=0)
    moved = tl.load(x_ptr + run * x_stride + index[:, None] * length + columns[None, :], mask=live)
    to = row.to(tl.int64)[:, None] * length + columns[None, :]
    tl.store(y_ptr + run * rows * length + to, moved, mask=live)
