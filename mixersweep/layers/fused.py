"""Norms and the SGD step for R runs at once, by Triton kernels of our own on a GPU.

Activations are contiguous with a leading axis of R runs; a parameter of all runs is (R, ...), and its rows may lie far
apart, as views of one flat tensor do. Every pass computes in fp32. The result of a run depends neither on R, nor on its
position, nor on its neighbours, to the bit: the sizes of blocks and the order of sums follow from the sizes of one run.
A sum over several programs is a sum of parts, added in a fixed order, whichever program finishes first.

The first call of a pass compiles its kernel, so it must come before a CUDA graph is captured.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2048
"""The numbers of one tensor that a program usually holds: with 4 warps, 16 a thread."""
WIDEST_ROW = 16384
"""The longest row that ``layer_norm`` takes, as one program must hold it."""
WHOLE_COLUMNS = 2048
"""The longest columns that a program of ``column_norm`` holds whole; longer ones are split."""
SPLIT_TILE = (128, 32)
"""The rows and columns of a tile of split columns: a row of fp32 is 128 bytes, what a warp reads at once."""
MOST_SPLITS = 32
MOST_PARTS = 256
"""The most parts of a sum; beyond, each program sums more than one tile."""
PARAMETERS_A_PROGRAM = 1024


def available(device: torch.device | str) -> bool:
    """Whether these passes run on a device: a CUDA GPU, or any device where Triton interprets its kernels."""
    try:
        kernels = _kernels()
    except ImportError:
        return False
    interpreted = type(kernels.sgd).__name__ == "InterpretedFunction"
    device = torch.device(device)
    if interpreted or device.type != "cuda" or not torch.cuda.is_available():
        return interpreted
    return torch.cuda.get_device_capability(device) >= (7, 0)


def is_for(x: Tensor) -> bool:
    """Whether the Triton kernels here, in ``batched`` and in ``moves`` run on this tensor's device."""
    return x.is_cuda and available(x.device)


def layer_norm(
    x_rnc: Tensor, weight_rc: Tensor, bias_rc: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Apply LayerNorm over the last axis of x (R, N, C), with the weights and biases (R, C) of each run.

    The result has ``dtype``, by default that of x. Under autocast torch's LayerNorm returns fp32 for a half-precision
    x; asking for half precision saves the copy that the product after it would make.
    """
    R, _, C = x_rnc.shape
    assert weight_rc.shape == bias_rc.shape == (R, C), "a scale and a shift for each run and column"
    assert C <= WIDEST_ROW, f"at most {WIDEST_ROW} columns"
    y_rnc: Tensor = _LayerNorm.apply(x_rnc, weight_rc, bias_rc, eps, dtype or x_rnc.dtype)
    return y_rnc


def column_norm(
    x_rmb: Tensor, weight_rm: Tensor, bias_rm: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Apply LayerNorm over axis 1 of x (R, m, B), features first, with the weights and biases (R, m) of each run.

    ``dtype`` is as for ``layer_norm``.
    """
    R, M, _ = x_rmb.shape
    assert weight_rm.shape == bias_rm.shape == (R, M), "a scale and a shift for each run and row"
    y_rmb: Tensor = _ColumnNorm.apply(x_rmb, weight_rm, bias_rm, eps, dtype or x_rmb.dtype)
    return y_rmb


def sgd_(
    p_rp: Tensor,
    g_rp: Tensor,
    buffer_rp: Tensor | None,
    lr_r: Tensor,
    momentum_r: Tensor | None = None,
    weight_decay_r: Tensor | None = None,
    decays_p: Tensor | None = None,
    rates_p: Tensor | None = None,
    *,
    nesterov: bool = False,
) -> None:
    """Take a step of ``torch.optim.SGD`` for the P parameters of each of R runs, in place and in fp32.

    Learning rates, momenta and weight decays (R,) are those of each run, in tensors on the device, which a CUDA graph
    reads at each replay. Parameter i decays by ``weight_decay_r * decays_p[i]`` and moves at the rate ``lr_r *
    rates_p[i]``; an omitted factor is 1. Start with a buffer of zeros, as torch does; without one there is no momentum.
    """
    R, P = p_rp.shape
    assert (buffer_rp is None) == (momentum_r is None), "momentum and its buffer need each other"
    assert buffer_rp is not None or not nesterov, "Nesterov's step needs momentum"
    for whole in (p_rp, g_rp, buffer_rp):
        assert whole is None or (whole.shape == (R, P) and whole.dtype == torch.float32)
        assert whole is None or whole.stride(1) == 1 or P == 1, "a run's parameters in a row"
    for vector, length in ((lr_r, R), (momentum_r, R), (weight_decay_r, R), (decays_p, P), (rates_p, P)):
        assert vector is None or (vector.shape == (length,) and vector.is_contiguous())
    assert weight_decay_r is not None or decays_p is None, "factors of weight decays need weight decays"
    buffer = p_rp if buffer_rp is None else buffer_rp
    grid = (_ceil_div(P, PARAMETERS_A_PROGRAM), R)
    with on_device_of(p_rp):
        _kernels().sgd[grid](
            p_rp,
            g_rp,
            buffer,
            lr_r,
            *(lr_r if each is None else each for each in (momentum_r, weight_decay_r, decays_p, rates_p)),
            p_rp.stride(0),
            g_rp.stride(0),
            buffer.stride(0),
            P,
            NESTEROV=nesterov,
            BUFFER=buffer_rp is not None,
            DECAY=weight_decay_r is not None,
            DECAYS=decays_p is not None,
            RATES=rates_p is not None,
            BLOCK=PARAMETERS_A_PROGRAM,
        )


@cache
def _kernels() -> Any:
    return importlib.import_module("mixersweep.layers.fused_kernels")


def on_device_of(x: Tensor) -> Any:
    """Context that makes x's device the current one, on which Triton launches its kernels."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _aligned(x: Tensor) -> Tensor:
    """Return x contiguous from a multiple of 16 bytes; for others Triton's kernel would sum in another order."""
    x = x.contiguous()
    assert x.numel() < 2**31 * max(len(x), 1), "a run's activations have fewer than 2^31 numbers"
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _rows_in_fp32(x_rc: Tensor) -> Tensor:
    """Return parameters in fp32, those of each run without gaps; rows may stay far apart."""
    return x_rc.float() if x_rc.stride(1) == 1 or x_rc.shape[1] == 1 else x_rc.float().contiguous()


def _ceil_div(length: int, block: int) -> int:
    return -(-length // block)


def _next_power_of_two(length: int) -> int:
    """Return the least power of two that is at least ``length``."""
    return 1 << max(length - 1, 0).bit_length()


def _split(length: int, block: int, most: int) -> tuple[int, int]:
    """Return into how many parts a length is split, ``most`` at most, and the number of blocks in each."""
    blocks = _ceil_div(length, block)
    each = _ceil_div(blocks, most)
    return _ceil_div(blocks, each), each


def _warps(numbers: int) -> int:
    """Return the number of warps, 4 to 16, for which a thread holds 16 numbers of a tile."""
    return min(max(numbers // 512, 4), 16)


def _sum_parts(parts_qpl: Tensor) -> Tensor:
    """Sum (Q, parts, length) over the parts, in their order, to (Q, length)."""
    Q, parts, length = parts_qpl.shape
    if parts == 1:
        return parts_qpl[:, 0]
    sum_ql = parts_qpl.new_empty(Q, length)
    _kernels().sum_parts[(_ceil_div(length, 32), Q)](parts_qpl, sum_ql, parts, length, BLOCK_P=32, BLOCK_L=32)
    return sum_ql


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, weight, bias = _aligned(x), _rows_in_fp32(weight), _rows_in_fp32(bias)
        R, N, C = x.shape
        y = torch.empty_like(x, dtype=dtype)
        mean, rstd = (x.new_empty(R, N, dtype=torch.float32) for _ in range(2))
        blocks = _row_blocks(C)
        with on_device_of(x):
            _kernels().layer_norm_forward[(_ceil_div(N, blocks["BLOCK_N"]), R)](
                x, weight, bias, y, mean, rstd, weight.stride(0), bias.stride(0), N, C, eps, **blocks
            )
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        g = _aligned(g)
        R, N, C = x.shape
        blocks = _row_blocks(C)
        rows = max(16, blocks["BLOCK_N"])  # a part stores two rows, so it sums 16 or more to stay small beside x
        parts, each = _split(N, rows, MOST_PARTS)
        gx = torch.empty_like(x)
        partial = x.new_empty(2, R, parts, C, dtype=torch.float32)
        with on_device_of(x):
            _kernels().layer_norm_backward[(parts, R)](
                x,
                g,
                weight,
                mean,
                rstd,
                gx,
                partial,
                weight.stride(0),
                N,
                C,
                each * rows // blocks["BLOCK_N"],
                **blocks,
            )
            of_weight, of_bias = _sum_parts(partial.view(2 * R, parts, C)).view(2, R, C)
        return gx, of_weight, of_bias, None, None


def _row_blocks(C: int) -> dict[str, int]:
    block = _next_power_of_two(max(C, 8))
    rows = max(TILE // block, 1)
    return {"BLOCK_N": rows, "BLOCK_C": block, "num_warps": _warps(rows * block)}


class _ColumnNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, weight, bias = _aligned(x), _rows_in_fp32(weight), _rows_in_fp32(bias)
        R, M, B = x.shape
        y = torch.empty_like(x, dtype=dtype)
        mean, rstd = (x.new_empty(R, B, dtype=torch.float32) for _ in range(2))
        strides = weight.stride(0), bias.stride(0)
        with on_device_of(x):
            if M <= WHOLE_COLUMNS:
                blocks = _column_blocks(M)
                _kernels().column_norm_forward[(_ceil_div(B, blocks["BLOCK_B"]), R)](
                    x, weight, bias, y, mean, rstd, *strides, M, B, eps, **blocks
                )
            else:
                parts, each, grid, blocks = _split_columns(x)
                partial = x.new_empty(2, R, parts, B, dtype=torch.float32)
                _kernels().column_statistics[grid](x, partial, M, B, each, **blocks)
                _kernels().column_apply[grid](
                    x, weight, bias, y, mean, rstd, partial, *strides, M, B, eps, each, BLOCK_P=MOST_SPLITS, **blocks
                )
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        g = _aligned(g)
        R, M, B = x.shape
        gx = torch.empty_like(x)
        stride = weight.stride(0)
        with on_device_of(x):
            if M <= WHOLE_COLUMNS:
                blocks = _column_blocks(M)
                columns = _ceil_div(B, blocks["BLOCK_B"])
                rows = x.new_empty(2, R, columns, M, dtype=torch.float32)
                _kernels().column_norm_backward[(columns, R)](
                    x, g, weight, mean, rstd, gx, rows, stride, M, B, **blocks
                )
            else:
                parts, each, grid, blocks = _split_columns(x)
                columns = grid[0]
                rows = x.new_empty(2, R, columns, M, dtype=torch.float32)
                partial = x.new_empty(2, R, parts, B, dtype=torch.float32)
                _kernels().column_sums[grid](x, g, weight, mean, rstd, rows, partial, stride, M, B, each, **blocks)
                _kernels().column_gradient[grid](
                    x, g, weight, mean, rstd, gx, partial, stride, M, B, each, BLOCK_P=MOST_SPLITS, **blocks
                )
            of_weight, of_bias = _sum_parts(rows.view(2 * R, columns, M)).view(2, R, M)
        return gx, of_weight, of_bias, None, None


def _column_blocks(M: int) -> dict[str, int]:
    """Choose blocks of 8 columns at least, a sector of memory, and of 32 at most, what a warp reads at once."""
    block = _next_power_of_two(max(M, 16))
    columns = min(max(8 * TILE // block, 8), 32)
    return {"BLOCK_M": block, "BLOCK_B": columns, "num_warps": _warps(block * columns)}


def _split_columns(x_rmb: Tensor) -> tuple[int, int, tuple[int, int, int], dict[str, int]]:
    """Return the parts of a column, the tiles in each part, the grid of programs, and the blocks."""
    R, M, B = x_rmb.shape
    rows, columns = SPLIT_TILE
    parts, each = _split(M, rows, MOST_SPLITS)
    return parts, each, (_ceil_div(B, columns), parts, R), {"BLOCK_M": rows, "BLOCK_B": columns, "num_warps": 8}
