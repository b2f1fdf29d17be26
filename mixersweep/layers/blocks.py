"""Products of factors with features-first x, (width, B), by kernels of our own for a CPU: ``blocks.c``.

A factor with blocks of b x b does b multiply-adds for each number that it reads and writes. For small blocks memory is
too slow for that, so factors in succession are applied together, to ``CELL`` features at most at a time, which stay in
the nearest caches. Only their common input is kept for the gradients; what is between them is computed again.

U Vᵀ + diag(d) is multiplied by U, V and d in two passes over the features, where torch's operations take many.

Each number is summed in an order that depends only on the sizes. Where the kernels are unavailable, torch multiplies
one factor after another (``layers.factors``).
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixersweep.layers import kernels
from mixersweep.layers.kernels import address

CELL = 64
"""The most features that factors applied together may mix: pieces of their inputs fit into the second-level cache."""

MOST = 128
"""The largest side of a block, or rank, that the kernels take: larger ones are no slower by torch."""

LEAST = 16
"""The fewest images of a batch that the kernels take: a vector of AVX-512."""

IMAGES = 64
"""The low-rank kernel takes batches that are a multiple of this: whole vectors, as many as it sums at once."""


def product(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, *, by_columns: bool) -> Tensor:
    """Return F_k ... F_2 F_1 x + bias (out_width, B), for weights (blocks, out_size, in_size) of each factor.

    Block n of a factor reads column n of the features as an (in_size, blocks) matrix; without ``by_columns``, of a
    single factor, row n of a (blocks, in_size) one. The bias is (out_width,) or None.
    """
    y: Tensor = _Product.apply(x, bias, by_columns, *weights)
    return y


def products_of_runs(x_rmb: Tensor, bias: Tensor | None, by_columns: bool, *weights: Tensor) -> Tensor:
    """Return ``product`` for each of R runs, (R, out_width, B); each tensor is (R, ...)."""
    biases = [None] * len(x_rmb) if bias is None else bias.unbind()
    runs = zip(x_rmb.unbind(), biases, zip(*(weight.unbind() for weight in weights), strict=True), strict=True)
    return torch.stack([product(x, of, one, by_columns=by_columns) for x, one, of in runs])


def low_rank(x: Tensor, transposed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (U Vᵀ + diag(d)) x + bias (width, B) for Vᵀ (rank, width) and the weight [U, d] (width, rank + 1).

    B is a multiple of ``IMAGES``; the bias is (width,) or None.
    """
    y: Tensor = _LowRank.apply(x, transposed, weight, bias)
    return y


def low_rank_of_runs(x_rmb: Tensor, transposed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``low_rank`` for each of R runs, (R, width, B); each tensor is (R, ...)."""
    biases = [None] * len(x_rmb) if bias is None else bias.unbind()
    return torch.stack([low_rank(*run) for run in zip(x_rmb, transposed, weight, biases, strict=True)])


def is_for(x: Tensor, weight: Tensor, side: int) -> bool:
    """Whether the kernels are available and take these tensors: fp32 on a CPU, with blocks and batch of such sizes."""
    if torch.compiler.is_compiling() or side > MOST or x.shape[1] < LEAST:
        return False
    is_fp32 = x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_fp32 and why_not_own() is None


def implementation(device: torch.device) -> str:
    """Return which implementation multiplies blocks on a device, ``own`` or ``torch``; last digits differ."""
    return "own" if device.type == "cpu" and why_not_own() is None else "torch"


def why_not_own() -> str | None:
    """Return the reason why the kernels of our own are unavailable on a CPU, None where they are available."""
    made = _library()
    return made if isinstance(made, str) else None


class Part(NamedTuple):
    """Factors ``first`` to before ``end`` that are applied together, to ``cells`` sets of features that they mix."""

    first: int
    end: int
    cells: int
    out_width: int
    ins: ctypes.Array[ctypes.c_int64]
    outs: ctypes.Array[ctypes.c_int64]


@lru_cache(maxsize=4096)
def parts_of(*shapes: tuple[int, int, int]) -> tuple[Part, ...]:
    """Divide factors, given by the shapes of their weights, into parts that mix at most ``CELL`` features, or one."""
    starts, full = [], CELL + 1
    mixed = full  # features, by the last part
    for number, (_, out_size, in_size) in enumerate(shapes):
        mixed *= in_size
        if mixed > CELL or out_size != in_size:
            starts.append(number)
            mixed = in_size if out_size == in_size else full
    return tuple(_part(shapes, *ends) for ends in itertools.pairwise([*starts, len(shapes)]))


def _part(shapes: Sequence[tuple[int, int, int]], first: int, end: int) -> Part:
    blocks, out_sizes, in_sizes = zip(*shapes[first:end], strict=True)
    array = ctypes.c_int64 * (end - first)
    cells = blocks[0] * in_sizes[0] // math.prod(in_sizes)
    return Part(first, end, cells, blocks[-1] * out_sizes[-1], array(*in_sizes), array(*out_sizes))


class _Product(torch.autograd.Function):
    """``product`` by the kernels; its gradients cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, by_columns: bool, *weights: Tensor) -> Tensor:
        x, *weights = (tensor.contiguous() for tensor in (x, *weights))  # type: ignore[assignment]
        parts, inputs = parts_of(*(weight.shape for weight in weights)), []
        for part in parts:
            inputs.append(x)
            x = _product(part, by_columns, weights, bias if part is parts[-1] else None, x)
        ctx.parts, ctx.by_columns = parts, by_columns
        ctx.save_for_backward(*inputs, *weights)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        of_bias = gradient.sum(1) if ctx.needs_input_grad[1] else None
        saved = ctx.saved_tensors  # once: under gradient checkpointing they cannot be had again
        inputs, weights = saved[: len(ctx.parts)], saved[len(ctx.parts) :]
        of_weights: list[Tensor] = []
        for x, part in zip(reversed(inputs), reversed(ctx.parts), strict=True):
            of_these, gradient = _gradients(part, ctx.by_columns, weights, x, gradient)
            of_weights = of_these + of_weights
        return gradient, of_bias, None, *of_weights


class _LowRank(torch.autograd.Function):
    """``low_rank`` by the kernels; its gradients cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transposed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, transposed, weight = x.contiguous(), transposed.contiguous(), weight.contiguous()
        z, y = x.new_empty(len(transposed), x.shape[1]), torch.empty_like(x)
        tensors = map(address, (transposed, weight, bias, x, z, y))
        _library().mixersweep_low_rank_product(*_low_rank_sizes(x, z), *tensors)  # type: ignore[union-attr]
        ctx.save_for_backward(transposed, weight, x, z)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        transposed, weight, x, z = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_z, of_transposed, of_weight, of_x = map(torch.empty_like, (z, transposed, weight, x))
        of_bias = x.new_empty(len(x)) if ctx.needs_input_grad[3] else None
        tensors = transposed, weight, x, z, gradient, of_z, of_transposed, of_weight, of_bias, of_x
        _library().mixersweep_low_rank_gradients(*_low_rank_sizes(x, z), *map(address, tensors))  # type: ignore[union-attr]
        return of_x, of_transposed, of_weight, of_bias


def _low_rank_sizes(x: Tensor, z: Tensor) -> tuple[int, ...]:
    return *x.shape, kernels.threads_for(2 * x.numel()), len(z)


def _product(part: Part, by_columns: bool, weights: Sequence[Tensor], bias: Tensor | None, x: Tensor) -> Tensor:
    """Return the product of the factors of a part, plus a bias."""
    y = x.new_empty(part.out_width, x.shape[1])
    tensors = _addresses(weights[part.first : part.end]), address(bias), address(x), address(y)
    _library().mixersweep_blocks_product(*_sizes(part, by_columns, x), *tensors)  # type: ignore[union-attr]
    return y


def _gradients(
    part: Part, by_columns: bool, weights: Sequence[Tensor], x: Tensor, gradient: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the weights of a part's factors, and of its input."""
    used = weights[part.first : part.end]
    of_weights, of_x = [torch.empty_like(weight) for weight in used], torch.empty_like(x)
    tensors = _addresses(used), address(x), address(gradient), _addresses(of_weights), address(of_x)
    _library().mixersweep_blocks_gradients(*_sizes(part, by_columns, x), *tensors)  # type: ignore[union-attr]
    return of_weights, of_x


def _sizes(part: Part, by_columns: bool, x: Tensor) -> tuple[Any, ...]:
    count = part.end - part.first
    threads = kernels.threads_for(x.numel() * count)
    return part.cells, x.shape[1], threads, count, by_columns, part.ins, part.outs


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(address, tensors))


@cache
def _library() -> ctypes.CDLL | str:
    """Return ``blocks.c``, compiled and loaded, or the reason why it is unavailable."""
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    sizes = [number, number, ctypes.c_int, number, number, pointer, pointer]
    return kernels.library(
        "blocks",
        mixersweep_blocks_product=[*sizes, *[pointer] * 4],
        mixersweep_blocks_gradients=[*sizes, *[pointer] * 5],
        mixersweep_low_rank_product=[number, number, ctypes.c_int, number, *[pointer] * 6],
        mixersweep_low_rank_gradients=[number, number, ctypes.c_int, number, *[pointer] * 10],
    )
