"""The dense matrix product, by the fastest routine that torch has for it.

On a CPU torch hands fp32 products to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN, which torch
brings too, takes the widest instructions that there are: on a Zen 5 core it is about twice as fast
(``mixersweep bench layers``: ``product_vs_mm``). Elsewhere these are torch's own products.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

ENOUGH = 2**22
"""Multiply-adds from which oneDNN's speed is worth its calls."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias: (n, k), (k, m) and a column (n, 1) to (n, m)."""
    if _is_onednns(a, b):
        y: Tensor = _Product.apply(a, b, bias)
        return y
    return a @ b if bias is None else torch.addmm(bias, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias: (..., k), (m, k) and (m,) to (..., m), which is ``F.linear``."""
    rows, columns = x.reshape(-1, x.shape[-1]), weight.t()
    if _is_onednns(rows, columns):
        y: Tensor = _Product.apply(rows, columns, bias)
        return y.view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


class _Product(torch.autograd.Function):
    """a b plus a row or a column. Its gradients are products again, with gradients of their own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.is_row = bias is not None and bias.dim() == 1
        onednn = _opaque_onednn if torch.compiler.is_compiling() else _onednn
        y: Tensor = onednn(a, b, bias if ctx.is_row else None)
        return y if bias is None or ctx.is_row else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,) = gradients
        a, b = ctx.saved_tensors
        of_a = of_b = of_bias = None
        if ctx.needs_input_grad[0]:
            of_a = product(g, b.t())
        if ctx.needs_input_grad[1]:  # stored as b is, which may be the transpose of a weight
            of_b = product(a.t(), g) if b.stride(1) == 1 else product(g.t(), a).t()
        if ctx.needs_input_grad[2]:
            of_bias = g.sum(0) if ctx.is_row else g.sum(1, keepdim=True)
        return of_a, of_b, of_bias


def _is_onednns(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN's routine is there, and faster: not where both are summed down their columns, as in the gradient
    of a weight that many rows share.
    """
    (n, k), m = a.shape, b.shape[1]
    if n * k * m < ENOUGH or not (a.is_cpu and b.is_cpu and a.dtype == b.dtype == torch.float32 and _AVAILABLE):
        return False
    summed_down = k > n and k > m and a.stride(1) != 1 and b.stride(1) == 1
    return not summed_down and not torch.is_autocast_enabled("cpu")


def _onednn(a: Tensor, b: Tensor, row: torch.Tensor | None) -> Tensor:
    """a b + row, as a linear layer of the weight bᵀ (m, k)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a.contiguous(), _dense(b.t()), row, "none", [], "")
    return y


def _dense(x: Tensor) -> Tensor:
    """In rows or in columns without gaps, which a gradient that is spread out is not."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


_opaque_onednn = torch.library.custom_op("mixersweep::onednn_product", _onednn, mutates_args=())
_opaque_onednn.register_fake(lambda a, b, _row: a.new_empty(a.shape[0], b.shape[1]))

_AVAILABLE = platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
