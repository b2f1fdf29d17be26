"""Products with the nonzeros of a sparse matrix on a GPU: the kernels of ``nonzeros.c``, in Triton.

**Each number depends on its own row alone.** An entry of A x is one chain of fused multiply-adds in one thread, from
the first nonzero of its row to the last, and then the bias; an entry of Aᵀ g likewise, down its column. A gradient of a
value is the product of two rows summed over the batch, a stretch at a time, in an order that the size of the batch
gives. There are no atomic operations. So the same numbers come out bit by bit in every run, and whatever else is in the
matrix: many matrices set along a diagonal (``stacked``) are multiplied as each would be alone. How the rows are shared
out among programs (``Schedule``) changes the time and no bit.

What bounds them is reading rows of x, one for each nonzero, mostly from the second-level cache. So a warp takes whole
rows of 128 images, four a thread, with several nonzeros under way at once; and both gradients come from one pass over
the columns, for they read the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

STRETCH = 512
"""Images of a batch whose products are summed at once. Part of the arithmetic: another number, other last digits."""

SUMS = 512
"""Gradients of values that a program puts together from those of the stretches."""

FOUR = 4
"""Numbers that a thread reads at once. A schedule of gradients leaves each warp as many for each of its threads, as it
would for one column alone: then each column's sums over the batch are in the same threads whatever the schedule."""


@dataclass(frozen=True)
class Schedule:
    """How rows are shared out: a program does ``rows`` of them side by side, ``groups`` times one after another."""

    rows: int
    warps: int = 1
    groups: int = 1
    tile: int = 128
    """Images of a batch that a program of A x does; those of the gradients do a stretch."""
    turn: int = 8
    """Nonzeros of a row that are under way at once, in A x."""


def schedule(lines: int, nonzeros: int, batch: int) -> Schedule:
    """For a matrix of so many rows: several short ones to a program, so that eight nonzeros are under way."""
    tile = _tile(batch, 128)
    mean = nonzeros / max(lines, 1)
    turn = 8 if mean > 4 else 4 if mean > 2 else 2
    return Schedule(rows=max(8 // turn, 32 * FOUR // tile), tile=tile, turn=turn)


def product(
    starts: Tensor,
    column_of: Tensor,
    values: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    how: Schedule | None = None,
) -> Tensor:
    """A x + bias: (rows + 1,) starts, (nonzeros,) columns and values, (columns, batch) to (rows, batch)."""
    rows, batch = starts.numel() - 1, x.shape[1]
    x, values, y = _aligned(x), values.contiguous(), x.new_empty(rows, batch)
    bias = None if bias is None else bias.contiguous()
    how = how or schedule(rows, values.numel(), batch)
    grid = triton.cdiv(rows, how.rows * how.groups), triton.cdiv(batch, how.tile)
    if y.numel():
        with torch.cuda.device_of(x):
            _product[grid](
                starts,
                column_of,
                values,
                bias,
                x,
                y,
                rows,
                batch,
                ROWS=how.rows,
                GROUPS=how.groups,
                TILE=how.tile,
                TURN=how.turn,
                num_warps=how.warps,
                num_stages=1,
            )
    return y


def gradients(
    starts: Tensor,
    row_of: Tensor,
    order: Tensor,
    values: Tensor,
    x: Tensor,
    gradient: Tensor,
    how: Schedule | None = None,
    stretch: int = STRETCH,
) -> tuple[Tensor, Tensor]:
    """Aᵀ gradient and (gradient xᵀ) at the nonzeros: those of x and of the values in ``product``.

    The nonzeros come by columns, with (columns + 1,) starts and their rows; ``order`` says where their values are.
    """
    (columns, batch), count = x.shape, values.numel()
    x, gradient, values = _aligned(x), _aligned(gradient), values.contiguous()
    of_x, of_values = torch.empty_like(x), torch.empty_like(values) if batch else torch.zeros_like(values)
    tile = _tile(batch, stretch)
    stretches = triton.cdiv(batch, tile)
    how = how or gradient_schedule(tile)
    grid = triton.cdiv(columns, how.rows * how.groups), stretches
    is_whole = stretches == 1
    sums = of_values if is_whole else values.new_empty(stretches, count)
    if of_x.numel():
        with torch.cuda.device_of(x):
            _gradients[grid](
                starts,
                row_of,
                order if is_whole else None,
                values if is_whole else values.index_select(0, order),
                x,
                gradient,
                of_x,
                sums,
                columns,
                batch,
                count,
                COLUMNS=how.rows,
                GROUPS=how.groups,
                TILE=tile,
                num_warps=how.warps,
                num_stages=1,
            )
            if not is_whole and count:
                _total[(triton.cdiv(count, SUMS),)](sums, order, of_values, count, stretches, BLOCK=SUMS, num_warps=4)
    return of_x, of_values


def gradient_schedule(tile: int) -> Schedule:
    """Of the gradients: four nonzeros of a column are always under way, and a warp has a column, if it is full."""
    return Schedule(rows=max(1, 32 * FOUR // tile), tile=tile)


def _tile(batch: int, most: int) -> int:
    """The power of two that holds a batch, or the most of it that is done at once."""
    return min(max(16, 1 << (batch - 1).bit_length()), most)


def _aligned(x: Tensor) -> Tensor:
    """Contiguous from an address that four numbers can be read from: how they are read gives the order of a sum."""
    x = x.contiguous()
    return x if x.data_ptr() % (4 * FOUR) == 0 else x.clone()


@triton.jit(do_not_specialize=["rows"])
def _product(
    starts,
    column_of,
    values,
    bias,
    x,
    y,
    rows,
    batch,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,
    TURN: tl.constexpr,
):
    image = tl.program_id(1) * TILE + tl.arange(0, TILE)
    there = image < batch
    for group in range(GROUPS):
        row = (tl.program_id(0) * GROUPS + group) * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        begin = tl.load(starts + row, mask=is_row, other=0)
        end = tl.load(starts + row + 1, mask=is_row, other=0)
        total = tl.zeros([ROWS, TILE], tl.float32)
        for first in range(0, tl.max(end - begin, 0), TURN):
            for k in tl.static_range(TURN):
                at = begin + first + k
                is_nonzero = at < end
                column = tl.load(column_of + at, mask=is_nonzero, other=0)
                value = tl.load(values + at, mask=is_nonzero, other=0.0)
                places = column.to(tl.int64)[:, None] * batch + image[None, :]
                entries = tl.load(x + places, mask=is_nonzero[:, None] & there[None, :], other=0.0)
                total = tl.fma(tl.broadcast_to(value[:, None], [ROWS, TILE]), entries, total)
        if bias is not None:
            total += tl.load(bias + row, mask=is_row, other=0.0)[:, None]
        tl.store(y + row.to(tl.int64)[:, None] * batch + image[None, :], total, mask=is_row[:, None] & there[None, :])


@triton.jit(do_not_specialize=["columns", "count"])
def _gradients(
    starts,
    row_of,
    order,
    values,
    x,
    gradient,
    of_x,
    sums,
    columns,
    batch,
    count,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A stretch of the batch. Without an ``order``, values and their gradients are in that of the columns."""
    image = tl.program_id(1) * TILE + tl.arange(0, TILE)
    sums += tl.program_id(1).to(tl.int64) * count
    there = image < batch
    four = tl.arange(0, 4)
    for group in range(GROUPS):
        column = (tl.program_id(0) * GROUPS + group) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < columns
        begin = tl.load(starts + column, mask=is_column, other=0)
        end = tl.load(starts + column + 1, mask=is_column, other=0)
        places = column.to(tl.int64)[:, None] * batch + image[None, :]
        is_place = is_column[:, None] & there[None, :]
        entries = tl.load(x + places, mask=is_place & (begin < end)[:, None], other=0.0)
        total = tl.zeros([COLUMNS, TILE], tl.float32)
        # For all that a compiler knows, what is stored is what is read next: so four nonzeros are read, then stored.
        for first in range(0, tl.max(end - begin, 0), 4):
            at = begin + first
            value_0, row_0 = _nonzero(at, end, row_of, order, values, gradient, batch, image, there)
            value_1, row_1 = _nonzero(at + 1, end, row_of, order, values, gradient, batch, image, there)
            value_2, row_2 = _nonzero(at + 2, end, row_of, order, values, gradient, batch, image, there)
            value_3, row_3 = _nonzero(at + 3, end, row_of, order, values, gradient, batch, image, there)
            total = tl.fma(value_0, row_0, total)
            total = tl.fma(value_1, row_1, total)
            total = tl.fma(value_2, row_2, total)
            total = tl.fma(value_3, row_3, total)
            inner_02 = tl.join(tl.sum(entries * row_0, 1), tl.sum(entries * row_2, 1))
            inner_13 = tl.join(tl.sum(entries * row_1, 1), tl.sum(entries * row_3, 1))
            inner = tl.reshape(tl.join(inner_02, inner_13), [COLUMNS, 4])
            at_four = at[:, None] + four[None, :]
            is_nonzero = at_four < end[:, None]
            place = at_four
            if order is not None:
                place = tl.load(order + at_four, mask=is_nonzero, other=0)
            tl.store(sums + place, inner, mask=is_nonzero)
        tl.store(of_x + places, total, mask=is_place)


@triton.jit
def _nonzero(at, end, row_of, order, values, gradient, batch, image, there):
    """Of one nonzero of each column: its value, spread out, and the row of the gradient that it meets."""
    is_nonzero = at < end
    row = tl.load(row_of + at, mask=is_nonzero, other=0)
    place = at
    if order is not None:
        place = tl.load(order + at, mask=is_nonzero, other=0)
    value = tl.load(values + place, mask=is_nonzero, other=0.0)
    places = row.to(tl.int64)[:, None] * batch + image[None, :]
    entries = tl.load(gradient + places, mask=is_nonzero[:, None] & there[None, :], other=0.0)
    return tl.broadcast_to(value[:, None], entries.shape), entries


@triton.jit(do_not_specialize=["count", "stretches"])
def _total(sums, order, of_values, count, stretches, BLOCK: tl.constexpr):
    """Add the gradients of the values of all stretches, the first first, and put them where the values are."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_nonzero = at < count
    total = tl.zeros([BLOCK], tl.float32)
    for stretch in range(stretches):
        total += tl.load(sums + stretch * count.to(tl.int64) + at, mask=is_nonzero, other=0.0)
    tl.store(of_values + tl.load(order + at, mask=is_nonzero, other=0), total, mask=is_nonzero)
