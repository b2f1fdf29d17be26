# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
"""The Triton kernels behind ``fused.py``, imported at the first pass, so that Triton is needed only there.

A program works on one run, the grid's last axis, and computes in fp32. Which numbers it sums, and in which order,
follows from the sizes of one run and the blocks alone. By default Triton compiles another kernel for arguments that 16
divides, with another layout and so another order of sums. Arguments that can differ between a pack and a run alone (the
address of parameters, and the stride between two runs) are therefore never specialised on.
"""

import triton
import triton.language as tl


@triton.jit
def sum_parts(parts_ptr, sum_ptr, parts, length, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr):
    """Sum (Q, parts, length) over the parts, in their order, to (Q, length)."""
    q = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    total = tl.zeros((BLOCK_P, BLOCK_L), tl.float32)
    for start in range(0, parts, BLOCK_P):
        rows = start + tl.arange(0, BLOCK_P)
        live = (rows < parts)[:, None] & (columns < length)[None, :]
        at = rows[:, None] * length + columns[None, :]
        total += tl.load(parts_ptr + q * parts * length + at, mask=live, other=0.0)
    tl.store(sum_ptr + q * length + columns, tl.sum(total, axis=0), mask=columns < length)


@triton.jit(do_not_specialize=["weight_ptr", "bias_ptr", "weight_stride", "bias_stride"])
def layer_norm_forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, weight_stride, bias_stride, N, C, eps,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalise a tile of whole rows of x (R, N, C), and keep their statistics (R, N)."""
    run = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_C)
    real = columns < C
    live = (rows < N)[:, None] & real[None, :]
    at = rows[:, None] * C + columns[None, :]
    x = tl.load(x_ptr + run * N * C + at, mask=live, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + run * weight_stride + columns, mask=real, other=0.0)
    bias = tl.load(bias_ptr + run * bias_stride + columns, mask=real, other=0.0)
    mean = tl.sum(x, axis=1) / C
    centred = tl.where(live, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + run * N * C + at, y.to(y_ptr.dtype.element_ty), mask=live)
    tl.store(mean_ptr + run * N + rows, mean, mask=rows < N)
    tl.store(rstd_ptr + run * N + rows, rstd, mask=rows < N)


@triton.jit(do_not_specialize=["weight_ptr", "weight_stride"])
def layer_norm_backward(
    x_ptr, g_ptr, weight_ptr, mean_ptr, rstd_ptr, gx_ptr, parts_ptr, weight_stride, N, C, tiles,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """For tiles of whole rows, compute the gradient of x and a part of those of weight and bias, (2, R, parts, C)."""
    part = tl.program_id(0)
    parts = tl.num_programs(0)
    run = tl.program_id(1).to(tl.int64)
    runs = tl.num_programs(1)
    columns = tl.arange(0, BLOCK_C)
    real = columns < C
    weight = tl.load(weight_ptr + run * weight_stride + columns, mask=real, other=0.0)
    of_weight = tl.zeros((BLOCK_C,), tl.float32)
    of_bias = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        live = (rows < N)[:, None] & real[None, :]
        at = rows[:, None] * C + columns[None, :]
        x = tl.load(x_ptr + run * N * C + at, mask=live, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + run * N * C + at, mask=live, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + run * N + rows, mask=rows < N, other=0.0)
        rstd = tl.load(rstd_ptr + run * N + rows, mask=rows < N, other=0.0)
        normed = (x - mean[:, None]) * rstd[:, None]
        weighted = g * weight[None, :]
        along_one = tl.sum(weighted, axis=1) / C
        along_x = tl.sum(weighted * normed, axis=1) / C
        gx = (weighted - along_one[:, None] - normed * along_x[:, None]) * rstd[:, None]
        tl.store(gx_ptr + run * N * C + at, gx.to(gx_ptr.dtype.element_ty), mask=live)
        of_weight += tl.sum(g * normed, axis=0)
        of_bias += tl.sum(g, axis=0)
    tl.store(parts_ptr + (run * parts + part) * C + columns, of_weight, mask=real)
    tl.store(parts_ptr + ((runs + run) * parts + part) * C + columns, of_bias, mask=real)


@triton.jit(do_not_specialize=["weight_ptr", "bias_ptr", "weight_stride", "bias_stride"])
def column_norm_forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, weight_stride, bias_stride, M, B, eps,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Normalise some whole columns of x (R, m, B), and keep their statistics (R, B)."""
    run = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    real = rows < M
    live = real[:, None] & (columns < B)[None, :]
    at = rows[:, None] * B + columns[None, :]
    x = tl.load(x_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + run * weight_stride + rows, mask=real, other=0.0)
    bias = tl.load(bias_ptr + run * bias_stride + rows, mask=real, other=0.0)
    mean = tl.sum(x, axis=0) / M
    centred = tl.where(live, x - mean[None, :], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / M + eps)
    y = centred * rstd[None, :] * weight[:, None] + bias[:, None]
    tl.store(y_ptr + run * M * B + at, y.to(y_ptr.dtype.element_ty), mask=live)
    tl.store(mean_ptr + run * B + columns, mean, mask=columns < B)
    tl.store(rstd_ptr + run * B + columns, rstd, mask=columns < B)


@triton.jit(do_not_specialize=["weight_ptr", "weight_stride"])
def column_norm_backward(
    x_ptr, g_ptr, weight_ptr, mean_ptr, rstd_ptr, gx_ptr, parts_ptr, weight_stride, M, B,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """For some whole columns, compute the gradient of x and a part of those of weight and bias, (2, R, parts, m)."""
    part = tl.program_id(0)
    parts = tl.num_programs(0)
    run = tl.program_id(1).to(tl.int64)
    runs = tl.num_programs(1)
    rows = tl.arange(0, BLOCK_M)
    columns = part * BLOCK_B + tl.arange(0, BLOCK_B)
    real = rows < M
    live = real[:, None] & (columns < B)[None, :]
    at = rows[:, None] * B + columns[None, :]
    x = tl.load(x_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + run * weight_stride + rows, mask=real, other=0.0)
    mean = tl.load(mean_ptr + run * B + columns, mask=columns < B, other=0.0)
    rstd = tl.load(rstd_ptr + run * B + columns, mask=columns < B, other=0.0)
    normed = (x - mean[None, :]) * rstd[None, :]
    tl.store(parts_ptr + (run * parts + part) * M + rows, tl.sum(g * normed, axis=1), mask=real)
    tl.store(parts_ptr + ((runs + run) * parts + part) * M + rows, tl.sum(g, axis=1), mask=real)
    weighted = g * weight[:, None]
    along_one = tl.sum(weighted, axis=0) / M
    along_x = tl.sum(weighted * normed, axis=0) / M
    gx = (weighted - along_one[None, :] - normed * along_x[None, :]) * rstd[None, :]
    tl.store(gx_ptr + run * M * B + at, gx.to(gx_ptr.dtype.element_ty), mask=live)


@triton.jit
def column_statistics(x_ptr, parts_ptr, M, B, tiles, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr):
    """Compute mean and sum of squared deviations of a part of some columns, (2, R, parts, B); Chan et al. 1979."""
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    run = tl.program_id(2).to(tl.int64)
    runs = tl.num_programs(2)
    columns = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    real = columns < B
    mean = tl.zeros((BLOCK_B,), tl.float32)
    squares = tl.zeros((BLOCK_B,), tl.float32)
    seen = part * 0.0
    for tile in range(tiles):
        start = (part * tiles + tile) * BLOCK_M
        rows = start + tl.arange(0, BLOCK_M)
        live = (rows < M)[:, None] & real[None, :]
        x = tl.load(x_ptr + run * M * B + rows[:, None] * B + columns[None, :], mask=live, other=0.0).to(tl.float32)
        new = tl.minimum(tl.maximum(M - start, 0), BLOCK_M).to(tl.float32)
        mean_new = tl.sum(x, axis=0) / tl.maximum(new, 1.0)
        centred = tl.where(live, x - mean_new[None, :], 0.0)
        apart = mean_new - mean
        fraction = new / tl.maximum(seen + new, 1.0)
        squares += tl.sum(centred * centred, axis=0) + apart * apart * seen * fraction
        mean += apart * fraction
        seen += new
    tl.store(parts_ptr + (run * parts + part) * B + columns, mean, mask=real)
    tl.store(parts_ptr + ((runs + run) * parts + part) * B + columns, squares, mask=real)


@triton.jit(do_not_specialize=["weight_ptr", "bias_ptr", "weight_stride", "bias_stride"])
def column_apply(
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, parts_ptr, weight_stride, bias_stride, M, B, eps, tiles,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Normalise a part of some columns of x by the combined statistics of all parts."""
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    run = tl.program_id(2).to(tl.int64)
    runs = tl.num_programs(2)
    columns = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    real = columns < B
    each = tl.arange(0, BLOCK_P)
    known = (each < parts)[:, None] & real[None, :]
    of_part = each[:, None] * B + columns[None, :]
    means = tl.load(parts_ptr + run * parts * B + of_part, mask=known, other=0.0)
    squares = tl.load(parts_ptr + (runs + run) * parts * B + of_part, mask=known, other=0.0)
    counts = tl.minimum(tl.maximum(M - each * tiles * BLOCK_M, 0), tiles * BLOCK_M).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, axis=0) / M
    apart = tl.where(known, means - mean[None, :], 0.0)
    rstd = tl.rsqrt(tl.sum(squares + apart * apart * counts, axis=0) / M + eps)
    tl.store(mean_ptr + run * B + columns, mean, mask=real & (part == 0))
    tl.store(rstd_ptr + run * B + columns, rstd, mask=real & (part == 0))
    for tile in range(tiles):
        rows = (part * tiles + tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        live = (rows < M)[:, None] & real[None, :]
        at = rows[:, None] * B + columns[None, :]
        x = tl.load(x_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + run * weight_stride + rows, mask=rows < M, other=0.0)
        bias = tl.load(bias_ptr + run * bias_stride + rows, mask=rows < M, other=0.0)
        y = (x - mean[None, :]) * rstd[None, :] * weight[:, None] + bias[:, None]
        tl.store(y_ptr + run * M * B + at, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["weight_ptr", "weight_stride"])
def column_sums(
    x_ptr, g_ptr, weight_ptr, mean_ptr, rstd_ptr, rows_ptr, columns_ptr, weight_stride, M, B, tiles,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Compute the backward pass's sums along rows, (2, R, blocks of columns, m), and columns, (2, R, parts, B)."""
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    run = tl.program_id(2).to(tl.int64)
    runs = tl.num_programs(2)
    columns = block * BLOCK_B + tl.arange(0, BLOCK_B)
    real = columns < B
    mean = tl.load(mean_ptr + run * B + columns, mask=real, other=0.0)
    rstd = tl.load(rstd_ptr + run * B + columns, mask=real, other=0.0)
    along_one = tl.zeros((BLOCK_B,), tl.float32)
    along_x = tl.zeros((BLOCK_B,), tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        live = (rows < M)[:, None] & real[None, :]
        at = rows[:, None] * B + columns[None, :]
        x = tl.load(x_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + run * weight_stride + rows, mask=rows < M, other=0.0)
        product = g * ((x - mean[None, :]) * rstd[None, :])
        tl.store(rows_ptr + (run * blocks + block) * M + rows, tl.sum(product, axis=1), mask=rows < M)
        tl.store(rows_ptr + ((runs + run) * blocks + block) * M + rows, tl.sum(g, axis=1), mask=rows < M)
        along_one += tl.sum(g * weight[:, None], axis=0)
        along_x += tl.sum(product * weight[:, None], axis=0)
    tl.store(columns_ptr + (run * parts + part) * B + columns, along_one, mask=real)
    tl.store(columns_ptr + ((runs + run) * parts + part) * B + columns, along_x, mask=real)


@triton.jit(do_not_specialize=["weight_ptr", "weight_stride"])
def column_gradient(
    x_ptr, g_ptr, weight_ptr, mean_ptr, rstd_ptr, gx_ptr, columns_ptr, weight_stride, M, B, tiles,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a part of some columns of x from the sums of all parts."""
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    run = tl.program_id(2).to(tl.int64)
    runs = tl.num_programs(2)
    columns = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    real = columns < B
    mean = tl.load(mean_ptr + run * B + columns, mask=real, other=0.0)
    rstd = tl.load(rstd_ptr + run * B + columns, mask=real, other=0.0)
    each = tl.arange(0, BLOCK_P)
    known = (each < parts)[:, None] & real[None, :]
    of_part = each[:, None] * B + columns[None, :]
    along_one = tl.sum(tl.load(columns_ptr + run * parts * B + of_part, mask=known, other=0.0), axis=0) / M
    along_x = tl.sum(tl.load(columns_ptr + (runs + run) * parts * B + of_part, mask=known, other=0.0), axis=0) / M
    for tile in range(tiles):
        rows = (part * tiles + tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        live = (rows < M)[:, None] & real[None, :]
        at = rows[:, None] * B + columns[None, :]
        x = tl.load(x_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + run * M * B + at, mask=live, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + run * weight_stride + rows, mask=rows < M, other=0.0)
        normed = (x - mean[None, :]) * rstd[None, :]
        gx = (g * weight[:, None] - along_one[None, :] - normed * along_x[None, :]) * rstd[None, :]
        tl.store(gx_ptr + run * M * B + at, gx.to(gx_ptr.dtype.element_ty), mask=live)


@triton.jit
def sgd(
    p_ptr, g_ptr, buffer_ptr, lr_ptr, momentum_ptr, decay_ptr, decays_ptr, rates_ptr, p_stride, g_stride,
    buffer_stride, P, NESTEROV: tl.constexpr, BUFFER: tl.constexpr, DECAY: tl.constexpr, DECAYS: tl.constexpr,
    RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take a step of ``torch.optim.SGD`` for a block of one run's parameters."""
    run = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < P
    p = tl.load(p_ptr + run * p_stride + at, mask=live)
    d = tl.load(g_ptr + run * g_stride + at, mask=live)
    if DECAY:
        decay = tl.load(decay_ptr + run)
        if DECAYS:
            decay *= tl.load(decays_ptr + at, mask=live)
        d += decay * p
    if BUFFER:
        momentum = tl.load(momentum_ptr + run)
        buffer = momentum * tl.load(buffer_ptr + run * buffer_stride + at, mask=live) + d
        tl.store(buffer_ptr + run * buffer_stride + at, buffer, mask=live)
        if NESTEROV:
            d += momentum * buffer
        else:
            d = buffer
    rate = tl.load(lr_ptr + run)
    if RATES:
        rate *= tl.load(rates_ptr + at, mask=live)
    tl.store(p_ptr + run * p_stride + at, p - rate * d, mask=live)
