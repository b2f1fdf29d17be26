# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
"""The Triton kernels behind ``batched.py``, imported at the first product, so that Triton is needed only there.

A program works on one matrix of the batch. Each number is a chain of fused multiply-adds along a part of the
contraction, in order, and then the sum of the parts, whose lengths follow from the sizes of one matrix. How a factor is
stored changes how it is read, but no bit. Addresses and strides can differ between a pack and a run alone, so Triton
must not specialise on them; ``ALIGNED`` says whether four numbers can be read at once.
"""

import torch
import triton
import triton.language as tl

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _tile(base, rows, columns, leading, inside, COLUMNS: tl.constexpr):
    """Load the entries (rows, columns) of a matrix that is stored row by row, or with COLUMNS column by column."""
    at = rows[:, None] + columns[None, :] * leading if COLUMNS else rows[:, None] * leading + columns[None, :]
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def _start(ptr, matrix, inner, outer_stride, inner_stride, ALIGNED: tl.constexpr):
    """Return the address at which a matrix of the batch begins."""
    base = ptr + (matrix // inner) * outer_stride + (matrix % inner) * inner_stride
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base


@triton.jit(
    do_not_specialize=[
        "a_ptr", "b_ptr", "bias_ptr", "sums_ptr", "inner", "a_outer", "a_inner", "b_outer", "b_inner", "bias_outer",
        "bias_inner", "steps", "sums_stride",
    ]
)  # fmt: skip
def multiply(
    a_ptr, b_ptr, bias_ptr, y_ptr, sums_ptr, inner, a_outer, a_inner, b_outer, b_inner, bias_outer, bias_inner,
    a_leading, b_leading, N, K, M, steps, y_stride, sums_stride,
    A_COLUMNS: tl.constexpr, B_COLUMNS: tl.constexpr, A_ALIGNED: tl.constexpr, B_ALIGNED: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Compute a tile of a part of a b, (N, K) by (K, M), plus a bias; SUMS also sums a's rows or b's columns."""
    across = tl.cdiv(M, BLOCK_M)
    tiles = tl.cdiv(N, BLOCK_N) * across
    tile = tl.program_id(0) % tiles
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    rows = (tile // across) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (tile % across) * BLOCK_M + tl.arange(0, BLOCK_M)
    a_base = _start(a_ptr, matrix, inner, a_outer, a_inner, A_ALIGNED)
    b_base = _start(b_ptr, matrix, inner, b_outer, b_inner, B_ALIGNED)
    real_rows = rows < N
    real_columns = columns < M
    if ONCE:
        inside = tl.arange(0, BLOCK_K)
        real = inside < K
        a = _tile(a_base, rows, inside, a_leading, real_rows[:, None] & real[None, :], A_COLUMNS)
        b = _tile(b_base, inside, columns, b_leading, real[:, None] & real_columns[None, :], B_COLUMNS)
        total = tl.dot(a.to(DTYPE), b.to(DTYPE), input_precision=PRECISION)
        if SUMS == "a":
            a_total = a.to(tl.float32)
        if SUMS == "b":
            b_total = b.to(tl.float32)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        if SUMS == "a":
            a_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        if SUMS == "b":
            b_total = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
        for step in range(steps):
            inside = (part * steps + step) * BLOCK_K + tl.arange(0, BLOCK_K)
            real = inside < K
            a = _tile(a_base, rows, inside, a_leading, real_rows[:, None] & real[None, :], A_COLUMNS)
            b = _tile(b_base, inside, columns, b_leading, real[:, None] & real_columns[None, :], B_COLUMNS)
            total = tl.dot(a.to(DTYPE), b.to(DTYPE), total, input_precision=PRECISION)
            if SUMS == "a":
                a_total += a.to(tl.float32)
            if SUMS == "b":
                b_total += b.to(tl.float32)
    if BIAS != "none":
        bias_base = _start(bias_ptr, matrix, inner, bias_outer, bias_inner, False)
        if BIAS == "rows":
            total += tl.load(bias_base + rows, mask=real_rows, other=0.0).to(tl.float32)[:, None]
        else:
            total += tl.load(bias_base + columns, mask=real_columns, other=0.0).to(tl.float32)[None, :]
    live = real_rows[:, None] & real_columns[None, :]
    position = rows[:, None] * M + columns[None, :]
    which = matrix * parts + part
    tl.store(y_ptr + which * y_stride + position, total.to(y_ptr.dtype.element_ty), mask=live)
    if SUMS == "a":
        row_sums = tl.sum(a_total, axis=1)
        tl.store(sums_ptr + which * sums_stride + rows, row_sums, mask=real_rows & (tile % across == 0))
    if SUMS == "b":
        column_sums = tl.sum(b_total, axis=0)
        tl.store(sums_ptr + which * sums_stride + columns, column_sums, mask=real_columns & (tile // across == 0))


@triton.jit(do_not_specialize=["bias_ptr", "inner", "bias_outer", "bias_inner"])
def add_parts(
    parts_ptr, bias_ptr, y_ptr, sums_ptr, inner, bias_outer, bias_inner, parts, N, M, sums,
    BIAS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Add the parts (matrices, parts, N M + sums), in their order, into (matrices, N, M) and (matrices, sums)."""
    length = N * M + sums
    blocks = tl.cdiv(length, BLOCK_L)
    matrix = (tl.program_id(0) // blocks).to(tl.int64)
    positions = (tl.program_id(0) % blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    known = positions < length
    total = tl.zeros((BLOCK_P, BLOCK_L), tl.float32)
    for first in range(0, parts, BLOCK_P):
        each = first + tl.arange(0, BLOCK_P)
        at = each[:, None] * length + positions[None, :]
        live = (each < parts)[:, None] & known[None, :]
        total += tl.load(parts_ptr + matrix * parts * length + at, mask=live, other=0.0)
    y = tl.sum(total, axis=0)
    of_y = positions < N * M
    if BIAS != "none":
        bias_base = _start(bias_ptr, matrix, inner, bias_outer, bias_inner, False)
        if BIAS == "rows":
            y += tl.load(bias_base + positions // M, mask=of_y, other=0.0).to(tl.float32)
        else:
            y += tl.load(bias_base + positions % M, mask=of_y, other=0.0).to(tl.float32)
    tl.store(y_ptr + matrix * N * M + positions, y.to(y_ptr.dtype.element_ty), mask=of_y)
    tl.store(sums_ptr + matrix * sums + positions - N * M, y, mask=known & (positions >= N * M))
