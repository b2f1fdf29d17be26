"""Batched matrix products of R runs, (R, n, k) by (R, k, m), by Triton kernels of our own on a GPU.

torch's batched product chooses its routine, and so its last digits, by the number of runs, and uses few programs for a
long contraction. Here the result of a run depends neither on R, nor on its position, nor on its neighbours, to the bit:
the tiles, and the parts that a long contraction is split into, follow from (n, k, m) alone, and the parts are added in
a fixed order. Factors are read in the order in which they are stored, transposed or with runs far apart.

Products that are large in all directions are torch's (``is_ours``): they are bound by compute, where cuBLAS is faster.
Their last digits may depend on R.

The first product of given sizes compiles its kernel, so it must come before a CUDA graph is captured.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixersweep.layers import fused
from mixersweep.layers.fused import is_for

Sums = Literal["none", "a", "b"]

WIDEST = 64
"""The most rows, and columns, of a tile of a product."""
STEP = 32
"""The length of a contraction that a program multiplies at once."""
PART = 128
"""The least length of a part of a split contraction."""
ENOUGH_PROGRAMS = 128
"""The number of programs beyond which a contraction is split no further: a large GPU has as many processors."""
NUMBERS_A_THREAD = 16
"""The numbers of a tile that a thread computes: 4 by 4, for which it reads 8 numbers a step; more in a large tile."""
MOST_WARPS = 4
STAGES = 3
"""The number of steps whose factors are loaded ahead (Triton's ``num_stages``)."""
MOST_REUSE = 80
"""The multiply-adds per number read or written beyond which torch computes the product."""
HALVES = (torch.float16, torch.bfloat16)


def products(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b + bias (R, n, m) of each run, for a (R, n, k), b (R, k, m) and a bias (R, n, 1) or (R, 1, m).

    All may have a second axis of blocks after that of runs, (R, blocks, ...). As with ``torch.bmm``, factors are
    rounded to tf32 where torch allows it; under autocast factors and result are half precision, and sums fp32.
    """
    assert a.dim() == b.dim() and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2], (a.shape, b.shape)
    n, k, m = *a.shape[-2:], b.shape[-1]
    dtype = torch.promote_types(a.dtype, b.dtype)
    if a.is_floating_point() and torch.is_autocast_enabled(a.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(a.device.type)
    if is_for(a) and is_ours(n, k, m) and dtype in (torch.float32, *HALVES):
        return multiplied(a, b, bias, dtype)
    return _torch_products(a, b, bias)


def is_ours(n: int, k: int, m: int) -> bool:
    """Whether the kernels here compute a product of these sizes: where it is bound by memory, not by compute.

    With s and t the smaller two sizes, it has st/(s + t) multiply-adds per number read or written, whatever the third.
    """
    s, t, _ = sorted((n, k, m))
    return 0 < s * t <= MOST_REUSE * (s + t)


def multiplied(a: Tensor, b: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute ``products`` by the kernels here, whatever the sizes, with factors rounded to ``dtype``."""
    y: Tensor = _Products.apply(a, b, bias, dtype)
    return y


def _torch_products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if a.dim() == 4:
        one_bias = None if bias is None else bias.flatten(0, 1)
        y: Tensor = _torch_products(a.flatten(0, 1), b.flatten(0, 1), one_bias).unflatten(0, a.shape[:2])
        return y
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)


class _Products(torch.autograd.Function):
    """The product, whose gradients are products stored like their factors; one also sums the bias's gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.dtype, ctx.bias = dtype, None if bias is None else (_bias_axis(bias, b.shape[-1]), bias.dtype)
        return _product(a, b, dtype, dtype, bias=bias)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        needs_a, needs_b, needs_bias, _ = ctx.needs_input_grad
        along = ctx.bias[0] if needs_bias else None
        g = _aligned(g)
        of_a = of_b = sums = None
        if needs_a or along == "rows":
            of_a, summed = _gradient(g, b.mT, "a" if along == "rows" else "none", ctx.dtype, a)
            sums = sums if summed is None else summed[..., None]
        if needs_b or along == "columns":
            of_b, summed = _gradient(a.mT, g, "b" if along == "columns" else "none", ctx.dtype, b)
            sums = sums if summed is None else summed[..., None, :]
        if sums is not None:
            sums = sums.to(ctx.bias[1])
        return of_a if needs_a else None, of_b if needs_b else None, sums, None


def _gradient(a: Tensor, b: Tensor, sums: Sums, dtype: torch.dtype, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a b with the dtype and memory order of ``like``, and the sums of a's rows or b's columns, or None."""
    if not _is_by_columns(like):
        return _product(a, b, dtype, like.dtype, sums=sums)
    swapped: dict[Sums, Sums] = {"none": "none", "a": "b", "b": "a"}
    y, summed = _product(b.mT, a.mT, dtype, like.dtype, sums=swapped[sums])
    return y.mT, summed


class _Factor(NamedTuple):
    """A batch of matrices with the strides by which a kernel reads it."""

    tensor: Tensor
    by_columns: bool
    leading: int
    outer: int
    inner: int
    aligned: bool


@dataclass(frozen=True)
class Tiles:
    """How a product of (n, k) by (k, m) is divided among programs: tiles of (n, m), contracted k numbers at a time."""

    n: int
    k: int
    m: int
    parts: int
    steps: int
    """The number of steps, of ``k`` numbers each, in a part of the contraction."""
    tiles: int
    warps: int


@cache
def tiles_of(n: int, k: int, m: int) -> Tiles:
    """Choose the tiles of a product; its contraction is split where its tiles alone would leave processors idle."""
    block_n, block_m = (min(max(_next_power_of_two(length), 16), WIDEST) for length in (n, m))
    block_k = min(max(_next_power_of_two(k), 16), STEP)
    tiles = math.ceil(n / block_n) * math.ceil(m / block_m)
    steps = math.ceil(k / block_k)
    if k >= 4 * PART and tiles < ENOUGH_PROGRAMS:
        parts = min(math.ceil(k / PART), math.ceil(ENOUGH_PROGRAMS / tiles))
        steps = math.ceil(steps / parts)
    warps = min(max(block_n * block_m // (32 * NUMBERS_A_THREAD), 1), MOST_WARPS)
    return Tiles(block_n, block_k, block_m, math.ceil(k / (steps * block_k)), steps, tiles, warps)


def _product(
    a: Tensor, b: Tensor, dtype: torch.dtype, out: torch.dtype, bias: Tensor | None = None, sums: Sums = "none"
) -> tuple[Tensor, Tensor | None]:
    """Return a b + bias in the dtype ``out``, with factors rounded to ``dtype``, and the fp32 sums or None.

    ``sums`` asks for the sums of a's rows ("a") or b's columns ("b"); that factor must be ``_aligned``.
    """
    batch, (n, k), m = a.shape[:-2], a.shape[-2:], b.shape[-1]
    how = tiles_of(n, k, m)
    matrices, inner = batch.numel(), math.prod(batch[1:])
    count = {"none": 0, "a": n, "b": m}[sums]
    y = a.new_empty(*batch, n, m, dtype=out)
    summed = a.new_empty(*batch, count, dtype=torch.float32)
    if how.parts == 1:
        into, sums_into, y_stride, sums_stride = y, summed, n * m, count
    else:
        into = a.new_empty(matrices, how.parts, n * m + count, dtype=torch.float32)
        sums_into = into.flatten()[n * m :]
        y_stride = sums_stride = n * m + count
    one, other = _factor(a), _factor(b)
    along = "none" if bias is None else _bias_axis(bias, m)
    of_bias = (y, 0, 0) if bias is None else _bias_strides(bias, along)
    kernels = _kernels()
    with fused.on_device_of(y):
        kernels.multiply[(how.tiles * matrices, how.parts)](
            one.tensor,
            other.tensor,
            of_bias[0],
            into,
            sums_into,
            inner,
            one.outer,
            one.inner,
            other.outer,
            other.inner,
            *of_bias[1:],
            one.leading,
            other.leading,
            n,
            k,
            m,
            how.steps,
            y_stride,
            sums_stride,
            A_COLUMNS=one.by_columns,
            B_COLUMNS=other.by_columns,
            A_ALIGNED=one.aligned,
            B_ALIGNED=other.aligned,
            BIAS="none" if how.parts > 1 else along,
            SUMS=sums,
            DTYPE=kernels.DTYPES[dtype],
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            ONCE=k <= how.k,
            BLOCK_N=how.n,
            BLOCK_K=how.k,
            BLOCK_M=how.m,
            num_warps=how.warps,
            num_stages=STAGES,
        )
        if how.parts > 1:
            kernels.add_parts[(math.ceil((n * m + count) / 32) * matrices,)](
                into, of_bias[0], y, summed, inner, *of_bias[1:], how.parts, n, m, count,
                BIAS=along, BLOCK_P=32, BLOCK_L=32,
            )  # fmt: skip
    return y, summed if count else None


def _factor(x: Tensor) -> _Factor:
    """Describe a factor that is stored by rows or by columns; one with gaps in both is copied first."""
    columns = _is_by_columns(x)
    if not columns and x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    outer = x.stride(0) if x.shape[0] > 1 else 0
    inner = x.stride(1) if x.dim() == 4 and x.shape[1] > 1 else 0
    leading = x.stride(-1) if columns else x.stride(-2)
    assert leading * (x.shape[-1] if columns else x.shape[-2]) < 2**31, "a matrix has fewer than 2^31 numbers"
    bytes_apart = (x.data_ptr(), *(x.element_size() * stride for stride in (outer, inner)))
    return _Factor(x, columns, leading, outer, inner, all(each % 16 == 0 for each in bytes_apart))


def _is_by_columns(x: Tensor) -> bool:
    """Whether the matrix of a run is stored by columns."""
    return x.stride(-1) != 1 and x.stride(-2) == 1


def _aligned(g: Tensor) -> Tensor:
    """Return g stored by rows or by columns without gaps from a multiple of 16 bytes, so that all packs store it alike.

    A kernel sums rows or columns for a bias in the order in which it reads them, which depends on the storage.
    """
    if not (g.is_contiguous() or g.mT.is_contiguous()):
        g = g.contiguous()
    return g if g.data_ptr() % 16 == 0 else g.clone()


def _bias_axis(bias: Tensor, columns: int) -> str:
    """Return "columns" for a bias with one number for each column, (..., 1, m), else "rows"."""
    return "columns" if bias.shape[-2:] == (1, columns) else "rows"


def _bias_strides(bias: Tensor, along: str) -> tuple[Tensor, int, int]:
    """Return a bias without gaps within a block, and the strides between two runs and between two blocks."""
    flat = bias.squeeze(-2 if along == "columns" else -1)
    if flat.stride(-1) != 1 and flat.shape[-1] != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0), flat.stride(1) if flat.dim() == 3 else 0


def _next_power_of_two(length: int) -> int:
    """Return the least power of two that is at least ``length``."""
    return 1 << max(length - 1, 0).bit_length()


@cache
def _kernels() -> Any:
    return importlib.import_module("mixersweep.layers.batched_kernels")
