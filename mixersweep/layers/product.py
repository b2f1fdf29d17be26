"""The dense matrix product, by the fastest routine that torch has for it on this machine.

On a CPU torch hands fp32 products to MKL, and brings oneDNN too. MKL keeps to AVX2 on processors that are not Intel's;
where such a processor has AVX-512 at its full width, oneDNN takes 0.4 to 0.7 of MKL's time. Everywhere else it takes
as long or longer: on two threads of an AVX2 processor the gradient of a shared weight two to three times as long. Hence
the rule of ``fastest``: nothing is timed, so that a machine that is busy computes the same numbers as one that is not.
Which routine it was is a fact of a run's environment, for its last digits differ, and a resumed run keeps it (``use``).
``mixersweep bench layers`` compares both: ``product_vs_mm``, ``onednn_vs_mm``.

Elsewhere these are torch's own products, and of a pack's runs those of ``batched.py``.
"""

from __future__ import annotations

import platform
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep import processor
from mixersweep.layers.batched import products
from mixersweep.layers.pack import is_packed, stacked

Routine = Literal["onednn", "torch"]

ENOUGH = 2**24
"""Multiply-adds from which oneDNN's speed is worth its calls: of a quarter of that, MKL has a layer done sooner."""

FULL_WIDTH = {"AuthenticAMD": 26}
"""Of each vendor but Intel the first family whose arithmetic is as wide as AVX-512: AMD's Zen 5.

Zen 4 does it in two halves, at AVX2's rate. Nobody has timed it there, so it keeps torch's own.
"""


def fastest() -> Routine:
    """The routine for this machine: oneDNN's where its vectors are wider than MKL's, else torch's own."""
    vendor, family = processor.vendor_and_family(processor.CPUINFO)
    is_full = family >= FULL_WIDTH.get(vendor, family + 1)
    has_both = is_available() and torch.backends.mkl.is_available()
    is_wider = is_full and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "onednn" if has_both and is_wider else "torch"


def is_available() -> bool:
    """Whether this torch has oneDNN's products for this processor."""
    return platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use(wanted: Routine | None = None) -> Routine:
    """Multiply by this routine from now on, without one by the ``fastest``; returns what it came to."""
    global _routine
    _routine = "torch" if wanted == "onednn" and not is_available() else wanted or fastest()
    return _routine


def routine() -> Routine:
    """What is in use."""
    return _routine


_routine: Routine = fastest()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias: (n, k), (k, m) and a column (n, 1) to (n, m)."""
    if is_packed():
        return stacked(products, a, b, bias)
    if _is_onednns(a, b):
        return _biased(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias: (..., k), (m, k) and (m,) to (..., m), which is ``F.linear``."""
    if is_packed():
        return stacked(_linears, x, weight, bias)
    if _routine == "onednn":
        rows, columns = x.reshape(-1, x.shape[-1]), weight.t()
        if _is_onednns(rows, columns):
            return _biased(rows, columns, bias).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def column(bias: Tensor | None) -> Tensor | None:
    """A bias of each row of a product: (..., n) to (..., n, 1)."""
    return None if bias is None else bias[..., None]


def _linears(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` of R runs: (R, ..., k), (R, m, k), (R, m) to (R, ..., m)."""
    y = products(x.flatten(1, -2), weight.mT, None if bias is None else bias[:, None])
    return y.view(*x.shape[:-1], weight.shape[1])


def _biased(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b plus a row or a column."""
    if torch.is_grad_enabled():
        with_gradients: Tensor = _Product.apply(a, b, bias)
        return with_gradients
    onednn = _opaque_onednn if torch.compiler.is_compiling() else _onednn
    if bias is None or bias.dim() == 1:
        return onednn(a, b, bias)
    return onednn(a, b, None).add_(bias)


class _Product(torch.autograd.Function):
    """The gradients of a product are products again, with gradients of their own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.is_row = bias is not None and bias.dim() == 1
        return _biased(a, b, bias)

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
    """Whether oneDNN's routine is in use, and worth its call for these."""
    if _routine != "onednn":
        return False
    (n, k), m = a.shape, b.shape[1]
    if n * k * m < ENOUGH or not (a.is_cpu and b.is_cpu and a.dtype == b.dtype == torch.float32):
        return False
    # With one thread MKL is as fast in the gradient of a shared weight. The compiler cannot ask how many there are.
    several = torch.compiler.is_compiling() or torch.get_num_threads() > 1
    return (several or not _is_sum_of_rows(a, b)) and not torch.is_autocast_enabled("cpu")


def _is_sum_of_rows(a: Tensor, b: Tensor) -> bool:
    """Whether both are stored in the rows that are summed over, and many: the gradient of a weight that they share."""
    (n, k), m = a.shape, b.shape[1]
    return k > n and k > m and a.stride(1) != 1 and b.stride(1) == 1


def _onednn(a: Tensor, b: Tensor, row: torch.Tensor | None) -> Tensor:
    """a b + row, as a linear layer of the weight bᵀ (m, k), or as the gradient of a convolution's kernel of 1 x 1."""
    if not _is_sum_of_rows(a, b):
        (n, k), m = a.shape, b.shape[1]
        if a.stride(1) != 1 and n * k > (n + k) * m:  # then bᵀ and the result are copied, which are smaller
            y: Tensor = _layer(b.t(), a).t().contiguous()
            return y if row is None else y + row
        return _layer(a, b.t(), row)
    images, gradient = (x.contiguous().view(1, len(x), 1, -1).permute(0, 3, 1, 2) for x in (b, a.t()))
    kernel = b.new_empty(len(a), b.shape[1], 1, 1)
    sizes = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    y = torch.ops.aten.convolution_backward(gradient, images, kernel, None, *sizes)[1][:, :, 0, 0]
    return y.contiguous() if row is None else y + row


def _layer(x: Tensor, weight: Tensor, row: Tensor | None = None) -> Tensor:
    """x weightᵀ + row, which copies an x that is not in rows."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), _dense(weight), row, "none", [], "")
    return y


def _dense(x: Tensor) -> Tensor:
    """In rows or in columns without gaps, which a gradient that is spread out is not."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


_opaque_onednn = torch.library.custom_op("mixersweep::onednn_product", _onednn, mutates_args=())
_opaque_onednn.register_fake(lambda a, b, _row: a.new_empty(a.shape[0], b.shape[1]))
