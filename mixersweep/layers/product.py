"""The dense matrix product, by the fastest routine that torch has for it on this machine.

On a CPU torch computes fp32 products with MKL, and ships oneDNN too. MKL uses only AVX2 on processors that are not
Intel's; where such a processor has AVX-512 at full width, oneDNN takes 0.4 to 0.7 of MKL's time. Everywhere else it
takes as long or longer: on two threads of an AVX2 processor, two to three times as long for the gradient of a shared
weight. ``fastest`` follows from this without timing anything, so a busy machine computes the same numbers as an idle
one. The last digits depend on the routine, so it is recorded in a run's environment and a resumed run keeps it
(``use``). ``mixersweep bench layers`` compares both: ``product_vs_mm``, ``onednn_vs_mm``.

On other devices these are torch's own products; inside a pack they are those of ``batched.py``.
"""

from __future__ import annotations

import platform
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep import processor
from mixersweep.layers.batched import products
from mixersweep.layers.pack import for_all_runs, is_packed

Routine = Literal["onednn", "torch"]

ENOUGH = 2**24
"""The fewest multiply-adds for which oneDNN's speed outweighs the cost of its calls: at a quarter, MKL is faster."""

FULL_WIDTH = {"AuthenticAMD": 26}
"""For each vendor but Intel, the first CPU family that computes AVX-512 at full width: AMD's Zen 5.

Zen 4 splits it into two halves, at AVX2's rate. oneDNN has not been timed there, so it keeps torch's own routine.
"""


def fastest() -> Routine:
    """Return the routine for this machine: oneDNN's where its vectors are wider than MKL's, else torch's own."""
    vendor, family = processor.vendor_and_family(processor.CPUINFO)
    is_full = family >= FULL_WIDTH.get(vendor, family + 1)
    has_both = is_available() and torch.backends.mkl.is_available()
    is_wider = is_full and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "onednn" if has_both and is_wider else "torch"


def is_available() -> bool:
    """Whether this build of torch has oneDNN's products for this processor."""
    return platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use(wanted: Routine | None = None) -> Routine:
    """Use this routine for all products from now on, by default the ``fastest``; return the one chosen.

    Where oneDNN is wanted but unavailable, it is torch's.
    """
    global _routine
    _routine = "torch" if wanted == "onednn" and not is_available() else wanted or fastest()
    return _routine


def routine() -> Routine:
    """Return the routine in use."""
    return _routine


_routine: Routine = fastest()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b + bias (n, m) for a (n, k), b (k, m) and a column bias (n, 1)."""
    if is_packed():
        return for_all_runs(products, a, b, bias)
    if _should_use_onednn(a, b):
        return _onednn_with_bias(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear``, x Wᵀ + bias (..., m), for x (..., k), weight (m, k) and bias (m,)."""
    if is_packed():
        return for_all_runs(_linear_of_runs, x, weight, bias)
    if _routine == "onednn":
        rows, columns = x.reshape(-1, x.shape[-1]), weight.t()
        if _should_use_onednn(rows, columns):
            return _onednn_with_bias(rows, columns, bias).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def column(bias: Tensor | None) -> Tensor | None:
    """Reshape a bias (..., n) to a column (..., n, 1), one number for each row of a product."""
    return None if bias is None else bias[..., None]


def _linear_of_runs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply ``linear`` to R runs: x (R, ..., k), weight (R, m, k), bias (R, m) to (R, ..., m)."""
    y = products(x.flatten(1, -2), weight.mT, None if bias is None else bias[:, None])
    return y.view(*x.shape[:-1], weight.shape[1])


def _onednn_with_bias(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return a b + bias by oneDNN, for a row bias (m,) or a column bias (n, 1)."""
    if torch.is_grad_enabled():
        with_gradients: Tensor = _Product.apply(a, b, bias)
        return with_gradients
    onednn = _opaque_onednn if torch.compiler.is_compiling() else _onednn
    if bias is None or bias.dim() == 1:
        return onednn(a, b, bias)
    return onednn(a, b, None).add_(bias)


class _Product(torch.autograd.Function):
    """oneDNN's product, whose gradients are products by ``product``, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.is_row = bias is not None and bias.dim() == 1
        return _onednn_with_bias(a, b, bias)

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


def _should_use_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN's routine is in use, takes these factors, and outweighs the cost of its call."""
    if _routine != "onednn":
        return False
    (n, k), m = a.shape, b.shape[1]
    if n * k * m < ENOUGH or not (a.is_cpu and b.is_cpu and a.dtype == b.dtype == torch.float32):
        return False
    # With one thread MKL is as fast in the gradient of a shared weight. The compiler cannot ask how many there are.
    several = torch.compiler.is_compiling() or torch.get_num_threads() > 1
    return (several or not _is_sum_of_rows(a, b)) and not torch.is_autocast_enabled("cpu")


def _is_sum_of_rows(a: Tensor, b: Tensor) -> bool:
    """Whether both factors are stored by the many rows that are summed over, as for a shared weight's gradient."""
    (n, k), m = a.shape, b.shape[1]
    return k > n and k > m and a.stride(1) != 1 and b.stride(1) == 1


def _onednn(a: Tensor, b: Tensor, row: torch.Tensor | None) -> Tensor:
    """Return a b + row, as a linear layer with weight bᵀ (m, k), or as the gradient of a 1 x 1 convolution's kernel."""
    if not _is_sum_of_rows(a, b):
        (n, k), m = a.shape, b.shape[1]
        if a.stride(1) != 1 and n * k > (n + k) * m:  # then bᵀ and the result are copied instead, which are smaller
            y: Tensor = _onednn_linear(b.t(), a).t().contiguous()
            return y if row is None else y + row
        return _onednn_linear(a, b.t(), row)
    images, gradient = (x.contiguous().view(1, len(x), 1, -1).permute(0, 3, 1, 2) for x in (b, a.t()))
    kernel = b.new_empty(len(a), b.shape[1], 1, 1)
    sizes = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    y = torch.ops.aten.convolution_backward(gradient, images, kernel, None, *sizes)[1][:, :, 0, 0]
    return y.contiguous() if row is None else y + row


def _onednn_linear(x: Tensor, weight: Tensor, row: Tensor | None = None) -> Tensor:
    """Return x weightᵀ + row; an x that is not stored by rows is copied."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), _without_gaps(weight), row, "none", [], "")
    return y


def _without_gaps(x: Tensor) -> Tensor:
    """Return x stored by rows or by columns without gaps; an expanded gradient, say, is copied."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


_opaque_onednn = torch.library.custom_op("mixersweep::onednn_product", _onednn, mutates_args=())
_opaque_onednn.register_fake(lambda a, b, _row: a.new_empty(a.shape[0], b.shape[1]))
