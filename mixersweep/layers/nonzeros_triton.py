"""Products of a sparse matrix in CSR form on a GPU: the kernels of ``nonzeros.c``, in Triton.

**Each number depends on its own row alone.** An entry of A x is one chain of fused multiply-adds in one thread, from
the first nonzero of its row to the last, and then the bias; an entry of Aᵀ g likewise, down its column. The gradient of
a value is the product of two rows summed over the batch, a stretch at a time, in an order that depends only on the size
of the batch. There are no atomic operations. So every run computes the same bits, whatever else is in the matrix:
blocks of a block-diagonal matrix are multiplied as each would be alone. How rows are divided among programs
(``Schedule``) changes the time, but no bit.

The kernels are bound by reading rows of x, one for each nonzero, mostly from the second-level cache. So a warp reads
whole rows of 128 images, four a thread, for several nonzeros at once; and one pass over the columns computes both
gradients, because they read the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

STRETCH = 512
"""The images of a batch whose products are summed at once. Another number gives other last digits."""

SUMS = 512
"""The number of values whose gradients a program adds up over the stretches."""

FOUR = 4
"""The numbers that a thread reads at once. Every schedule of the gradients gives each thread of a warp that many, as
for a single column, so that the same threads sum each column over the batch whatever the schedule.
"""


@dataclass(frozen=True)
class Schedule:
    """How rows are divided among programs: a program computes ``rows`` of them at a time, ``groups`` times."""

    rows: int
    warps: int = 1
    groups: int = 1
    tile: int = 128
    """The images of a batch that a program of A x computes; a program of the gradients computes a stretch."""
    turn: int = 8
    """The nonzeros of a row that are read at once, in A x."""


def schedule(rows: int, nonzeros: int, batch: int) -> Schedule:
    """Choose a schedule of A x; short rows share a program, so that it reads eight nonzeros at once."""
    tile = _tile(batch, 128)
    mean = nonzeros / max(rows, 1)
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
    """Return A x + bias (rows, B) for starts (rows + 1,), column_of and values (nonzeros,), and x (columns, B)."""
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
    """Return the gradients of x, Aᵀ gradient, and of the values, gradient xᵀ at the nonzeros, in ``product``.

    The nonzeros are listed by columns, with (columns + 1,) starts and their rows; ``order`` are the indices of their
    values.
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
    """Choose a schedule of the gradients: a full warp has one column, and reads four of its nonzeros at once."""
    return Schedule(rows=max(1, 32 * FOUR // tile), tile=tile)


def _tile(batch: int, most: int) -> int:
    """Return the power of two, 16 at least, that holds a batch, or ``most`` if that is less."""
    return min(max(16, 1 << (batch - 1).bit_length()), most)


def _aligned(x: Tensor) -> Tensor:
    """Return x contiguous from a multiple of 16 bytes: how numbers are read decides the order of a sum."""
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
                positions = column.to(tl.int64)[:, None] * batch + image[None, :]
                entries = tl.load(x + positions, mask=is_nonzero[:, None] & there[None, :], other=0.0)
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
    """Compute a stretch of the batch. Without an ``order``, values and their gradients are listed by columns."""
    image = tl.program_id(1) * TILE + tl.arange(0, TILE)
    sums += tl.program_id(1).to(tl.int64) * count
    there = image < batch
    four = tl.arange(0, 4)
    for group in range(GROUPS):
        column = (tl.program_id(0) * GROUPS + group) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < columns
        begin = tl.load(starts + column, mask=is_column, other=0)
        end = tl.load(starts + column + 1, mask=is_column, other=0)
        positions = column.to(tl.int64)[:, None] * batch + image[None, :]
        is_live = is_column[:, None] & there[None, :]
        entries = tl.load(x + positions, mask=is_live & (begin < end)[:, None], other=0.0)
        total = tl.zeros([COLUMNS, TILE], tl.float32)
        # The compiler cannot know that stores do not overlap the next loads, so load four nonzeros before storing them.
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
            position = at_four
            if order is not None:
                position = tl.load(order + at_four, mask=is_nonzero, other=0)
            tl.store(sums + position, inner, mask=is_nonzero)
        tl.store(of_x + positions, total, mask=is_live)


@triton.jit
def _nonzero(at, end, row_of, order, values, gradient, batch, image, there):
    """Load one nonzero of each column: its value, broadcast, and the row of the gradient that it multiplies."""
    is_nonzero = at < end
    row = tl.load(row_of + at, mask=is_nonzero, other=0)
    position = at
    if order is not None:
        position = tl.load(order + at, mask=is_nonzero, other=0)
    value = tl.load(values + position, mask=is_nonzero, other=0.0)
    positions = row.to(tl.int64)[:, None] * batch + image[None, :]
    entries = tl.load(gradient + positions, mask=is_nonzero[:, None] & there[None, :], other=0.0)
    return tl.broadcast_to(value[:, None], entries.shape), entries


@triton.jit(do_not_specialize=["count", "stretches"])
def _total(sums, order, of_values, count, stretches, BLOCK: tl.constexpr):
    """Sum the gradients of the values over the stretches, in their order, and store them in the values' order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_nonzero = at < count
    total = tl.zeros([BLOCK], tl.float32)
    for stretch in range(stretches):
        total += tl.load(sums + stretch * count.to(tl.int64) + at, mask=is_nonzero, other=0.0)
    tl.store(of_values + tl.load(order + at, mask=is_nonzero, other=0), total, mask=is_nonzero)
