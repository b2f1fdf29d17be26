"""The passes between the products of a pack's runs, each as one kernel of our own on a GPU: norms and SGD.

Activations are contiguous with a leading axis of R runs; a parameter of all runs is (R, ...), and its rows may lie far
apart, as views of one flat tensor do. Every pass computes in fp32. What one run gets depends neither on R, nor on its
place, nor on its neighbours, to the bit: sizes of blocks and orders of sums follow from the sizes of one run. A sum
that takes several programs goes through parts, added up in their order, whichever program ends first.

The first call of a pass compiles it, so it has to come before a CUDA graph is captured.
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
"""Numbers that a program holds of one tensor, where nothing asks for more; 4 warps are 16 numbers a thread."""
WIDEST_ROW = 16384
"""The longest row that ``layer_norm`` takes: one program holds it."""
WHOLE_COLUMNS = 2048
"""The longest columns that one program of ``column_norm`` holds; longer ones are split."""
SPLIT_TILE = (128, 32)
"""Rows and columns of a tile of a split column: a row of fp32 is 128 bytes, what a warp reads at once."""
MOST_SPLITS = 32
MOST_PARTS = 256
"""Beyond these many parts, each program sums more than one tile."""
PARAMETERS_A_PROGRAM = 1024


def available(device: torch.device | str) -> bool:
    """Whether these passes run on a device: a CUDA GPU, or any where Triton interprets its kernels."""
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
    """Whether Triton kernels are for where a tensor lies: these, and those of ``batched`` and ``moves``."""
    return x.is_cuda and available(x.device)


def layer_norm(
    x_rnc: Tensor, weight_rc: Tensor, bias_rc: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last axis of (R, N, C), with a scale and a shift (R, C) per run, in ``dtype``, x's by default.

    ``dtype=torch.float32`` is what torch's LayerNorm gives for a half under autocast; a half from an fp32 x is what the
    product after it makes of that, without the copy.
    """
    R, _, C = x_rnc.shape
    assert weight_rc.shape == bias_rc.shape == (R, C), "a scale and a shift for each run and column"
    assert C <= WIDEST_ROW, f"at most {WIDEST_ROW} columns"
    y_rnc: Tensor = _LayerNorm.apply(x_rnc, weight_rc, bias_rc, eps, dtype or x_rnc.dtype)
    return y_rnc


def column_norm(
    x_rmb: Tensor, weight_rm: Tensor, bias_rm: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """The numbers of LayerNorm with features first: over axis 1 of (R, m, B), scale and shift (R, m) per run.

    ``dtype`` as for ``layer_norm``.
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
    """A step of ``torch.optim.SGD`` for all parameters of R runs, in place, in one pass over (R, P) in fp32.

    Rates, momenta and weight decays are each run's, in tensors on the device: a CUDA graph reads them anew. Parameter i
    decays by ``weight_decay_r * decays_p[i]`` and moves at the rate ``lr_r * rates_p[i]``; either factor is 1 where
    there is none. A buffer of zeros is torch's before the first step. Without a buffer there is no momentum.
    """
    R, P = p_rp.shape
    assert (buffer_rp is None) == (momentum_r is None), "momentum with its buffer"
    assert buffer_rp is not None or not nesterov, "Nesterov's step needs momentum"
    for whole in (p_rp, g_rp, buffer_rp):
        assert whole is None or (whole.shape == (R, P) and whole.dtype == torch.float32)
        assert whole is None or whole.stride(1) == 1 or P == 1, "a run's parameters in a row"
    for vector, length in ((lr_r, R), (momentum_r, R), (weight_decay_r, R), (decays_p, P), (rates_p, P)):
        assert vector is None or (vector.shape == (length,) and vector.is_contiguous())
    assert weight_decay_r is not None or decays_p is None, "factors of a weight decay that there is"
    buffer = p_rp if buffer_rp is None else buffer_rp
    grid = (_blocks(P, PARAMETERS_A_PROGRAM), R)
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
    """Triton starts its kernels on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _activations(x: Tensor) -> Tensor:
    """Contiguous and aligned: a kernel for others would be another one, which adds up in another order."""
    x = x.contiguous()
    assert x.numel() < 2**31 * max(len(x), 1), "a run's activations have fewer than 2^31 numbers"
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _parameters(x_rc: Tensor) -> Tensor:
    """Each run's in a row, the rows as far apart as they are; in fp32."""
    return x_rc.float() if x_rc.stride(1) == 1 or x_rc.shape[1] == 1 else x_rc.float().contiguous()


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def _power(length: int) -> int:
    """The next power of two."""
    return 1 << max(length - 1, 0).bit_length()


def _shares(length: int, block: int, most: int) -> tuple[int, int]:
    """How many parts a length is summed in, and the blocks in each."""
    blocks = _blocks(length, block)
    each = _blocks(blocks, most)
    return _blocks(blocks, each), each


def _warps(numbers: int) -> int:
    """So many that a thread holds 16 numbers of a tile, between 4 and 16."""
    return min(max(numbers // 512, 4), 16)


def _summed(parts_qpl: Tensor) -> Tensor:
    """(Q, parts, length) to (Q, length), in the order of the parts."""
    Q, parts, length = parts_qpl.shape
    if parts == 1:
        return parts_qpl[:, 0]
    sum_ql = parts_qpl.new_empty(Q, length)
    _kernels().sum_parts[(_blocks(length, 32), Q)](parts_qpl, sum_ql, parts, length, BLOCK_P=32, BLOCK_L=32)
    return sum_ql


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, weight, bias = _activations(x), _parameters(weight), _parameters(bias)
        R, N, C = x.shape
        y = torch.empty_like(x, dtype=dtype)
        mean, rstd = (x.new_empty(R, N, dtype=torch.float32) for _ in range(2))
        blocks = _row_blocks(C)
        with on_device_of(x):
            _kernels().layer_norm_forward[(_blocks(N, blocks["BLOCK_N"]), R)](
                x, weight, bias, y, mean, rstd, weight.stride(0), bias.stride(0), N, C, eps, **blocks
            )
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        g = _activations(g)
        R, N, C = x.shape
        blocks = _row_blocks(C)
        rows = max(16, blocks["BLOCK_N"])  # a part is two rows: as many as that keep it small beside x
        parts, each = _shares(N, rows, MOST_PARTS)
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
            of_weight, of_bias = _summed(partial.view(2 * R, parts, C)).view(2, R, C)
        return gx, of_weight, of_bias, None, None


def _row_blocks(C: int) -> dict[str, int]:
    block = _power(max(C, 8))
    rows = max(TILE // block, 1)
    return {"BLOCK_N": rows, "BLOCK_C": block, "num_warps": _warps(rows * block)}


class _ColumnNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, weight, bias = _activations(x), _parameters(weight), _parameters(bias)
        R, M, B = x.shape
        y = torch.empty_like(x, dtype=dtype)
        mean, rstd = (x.new_empty(R, B, dtype=torch.float32) for _ in range(2))
        strides = weight.stride(0), bias.stride(0)
        with on_device_of(x):
            if M <= WHOLE_COLUMNS:
                blocks = _column_blocks(M)
                _kernels().column_norm_forward[(_blocks(B, blocks["BLOCK_B"]), R)](
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
        g = _activations(g)
        R, M, B = x.shape
        gx = torch.empty_like(x)
        stride = weight.stride(0)
        with on_device_of(x):
            if M <= WHOLE_COLUMNS:
                blocks = _column_blocks(M)
                columns = _blocks(B, blocks["BLOCK_B"])
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
            of_weight, of_bias = _summed(rows.view(2 * R, columns, M)).view(2, R, M)
        return gx, of_weight, of_bias, None, None


def _column_blocks(M: int) -> dict[str, int]:
    """At least 8 columns, so that a row of them is a sector of memory, and at most 32, what a warp reads at once."""
    block = _power(max(M, 16))
    columns = min(max(8 * TILE // block, 8), 32)
    return {"BLOCK_M": block, "BLOCK_B": columns, "num_warps": _warps(block * columns)}


def _split_columns(x_rmb: Tensor) -> tuple[int, int, tuple[int, int, int], dict[str, int]]:
    """The parts of a column, the tiles in each, the grid, and the blocks."""
    R, M, B = x_rmb.shape
    rows, columns = SPLIT_TILE
    parts, each = _shares(M, rows, MOST_SPLITS)
    return parts, each, (_blocks(B, columns), parts, R), {"BLOCK_M": rows, "BLOCK_B": columns, "num_warps": 8}
