# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
"""The Triton kernels behind ``moves.py``, imported at the first move, never by who has no Triton.

They copy bits. Memory is read and written in whole rows, or in stretches of them that a warp takes at once.
"""

import triton
import triton.language as tl


@triton.jit
def from_table(
    x_ptr, place_ptr, y_ptr, rows, B, C, x_stride, place_stride, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr
):
    """A tile of x (R, rows, B, C) to y (R, rows C, B): feature f goes to the row place[f], or stays in order."""
    run, row, images, columns, live = _cell(B, C, BLOCK_B, BLOCK_C)
    at = (row * B + images[:, None]) * C + columns[None, :]
    tile = tl.load(x_ptr + run * x_stride + at, mask=live)
    place = row * C + columns
    if place_ptr is not None:
        place = tl.load(place_ptr + run * place_stride + place, mask=columns < C, other=0)
    to = place[:, None] * B + images[None, :]
    tl.store(y_ptr + run * rows * B * C + to, tl.trans(tile), mask=tl.trans(live))


@triton.jit
def to_table(x_ptr, place_ptr, y_ptr, rows, B, C, x_stride, place_stride, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tile of y (R, rows, B, C) from x (R, rows C, B): feature f comes from the row place[f]."""
    run, row, images, columns, live = _cell(B, C, BLOCK_B, BLOCK_C)
    place = tl.load(place_ptr + run * place_stride + row * C + columns, mask=columns < C, other=0)
    at = place[:, None] * B + images[None, :]
    tile = tl.load(x_ptr + run * x_stride + at, mask=tl.trans(live))
    to = (row * B + images[:, None]) * C + columns[None, :]
    tl.store(y_ptr + run * rows * B * C + to, tl.trans(tile), mask=live)


@triton.jit
def _cell(B, C, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which run, row, images and columns a program moves."""
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
    """Some rows of y (R, rows, length): row i is x's row indices[i]."""
    across = tl.cdiv(length, BLOCK_L)
    run = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) // across) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (tl.program_id(0) % across) * BLOCK_L + tl.arange(0, BLOCK_L)
    live = (row < rows)[:, None] & (columns < length)[None, :]
    index = tl.load(indices_ptr + run * indices_stride + row, mask=row < rows, other=0)
    moved = tl.load(x_ptr + run * x_stride + index[:, None] * length + columns[None, :], mask=live)
    to = row.to(tl.int64)[:, None] * length + columns[None, :]
    tl.store(y_ptr + run * rows * length + to, moved, mask=live)
