"""Products with the nonzeros of a sparse matrix, in CSR form, of features that come first: (width, batch).

On a CPU with AVX2 or AVX-512 they are ``nonzeros.c``'s, which the machine's C compiler makes ready in half a second,
once. Elsewhere they are torch's, as where there is no compiler: an embedding bag, whose rows are weighted sums of rows
of x, and MKL's sampled product on a CPU; cuSPARSE's on a GPU.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.layers import kernels
from mixersweep.layers.kernels import address


def product(starts: Tensor, column_of: Tensor, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """A x + bias: (rows + 1,) starts, (nonzeros,) columns and values, (columns, batch) to (rows, batch)."""
    chosen = _opaque_product if torch.compiler.is_compiling() else _product
    y: Tensor = chosen(starts, column_of, values, x, bias)
    return y


def gradients(
    starts: Tensor, row_of: Tensor, order: Tensor, values: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Aᵀ gradient and (gradient xᵀ) at the nonzeros: those of x and of the values in ``product``.

    The nonzeros come by columns, with (columns + 1,) starts and their rows; ``order`` says where their values are.
    """
    chosen = _opaque_gradients if torch.compiler.is_compiling() else _gradients
    of_x, of_values = chosen(starts, row_of, order, values, x, gradient)
    return of_x, of_values


def whose(device: torch.device) -> str:
    """Whose products these are on a device, ``own`` or ``torch``: their last digits differ."""
    return "own" if device.type == "cpu" and why_not_own() is None else "torch"


def why_not_own() -> str | None:
    """What stands in the way of the kernels of our own on this machine's CPU."""
    library = _library()
    return library if isinstance(library, str) else None


def _product(starts: Tensor, column_of: Tensor, values: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    x = x.contiguous()
    library = _library_for(x, values, starts)
    if library is not None:
        y = x.new_empty(starts.numel() - 1, x.shape[1])
        tensors = starts, column_of, values, bias, x, y
        library.mixersweep_product(*y.shape, torch.get_num_threads(), *map(address, tensors))
        return y
    if x.is_cpu:
        y = F.embedding_bag(
            column_of, x.detach(), starts, mode="sum", per_sample_weights=values.detach(), include_last_offset=True
        )
    else:
        matrix = _csr(starts, column_of, values, (starts.numel() - 1, x.shape[0]))
        y = x.new_empty(matrix.shape[0], x.shape[1])
        torch.addmm(y, matrix, x, beta=0, out=y)  # `@` would first fill fresh memory with zeros, and add
    return y if bias is None else y.add_(bias[:, None])


def _gradients(
    starts: Tensor, row_of: Tensor, order: Tensor, values: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    x, gradient = x.contiguous(), gradient.contiguous()
    library = _library_for(x, values, starts)
    if library is not None:
        of_x, of_values = torch.empty_like(x), torch.empty_like(values)
        tensors = starts, row_of, order, values, x, gradient, of_x, of_values
        library.mixersweep_gradients(*x.shape, torch.get_num_threads(), *map(address, tensors))
        return of_x, of_values
    of_x = _product(starts, row_of, values.index_select(0, order), gradient, None)
    by_column = torch.zeros_like(values)
    matrix = _csr(starts, row_of, by_column, (x.shape[0], gradient.shape[0]))  # shares the memory: written in place
    torch.sparse.sampled_addmm(matrix, x, gradient.t(), beta=0.0, out=matrix)
    return of_x, torch.empty_like(values).index_copy_(0, order.long(), by_column)


_opaque_product = torch.library.custom_op("mixersweep::product", _product, mutates_args=())
_opaque_product.register_fake(lambda starts, _c, _v, x, _b: x.new_empty(starts.shape[0] - 1, x.shape[1]))
_opaque_gradients = torch.library.custom_op("mixersweep::gradients", _gradients, mutates_args=())
_opaque_gradients.register_fake(lambda _s, _r, _o, values, x, _g: (x.new_empty(x.shape), torch.empty_like(values)))


def _csr(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # said once a process by torch, of a format that it has had since 1.10
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        # 2.11 and 2.12 look at the state of the process before the argument that says what it would.
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


def _library_for(x: Tensor, values: Tensor, starts: Tensor) -> ctypes.CDLL | None:
    """The kernels of our own, for what they take: fp32, positions below 2^31, a vector's width of images at least."""
    if not (x.is_cpu and x.dtype == values.dtype == torch.float32 and starts.dtype == torch.int32):
        return None
    library = _library()
    enough = x.shape[1] >= kernels.lanes()
    return library if enough and not isinstance(library, str) else None


@cache
def _library() -> ctypes.CDLL | str:
    """``nonzeros.c``, or why there is none."""
    sizes_and_threads = [*[ctypes.c_int64] * 2, ctypes.c_int]
    return kernels.library(
        "nonzeros",
        mixersweep_product=[*sizes_and_threads, *[ctypes.c_void_p] * 6],
        mixersweep_gradients=[*sizes_and_threads, *[ctypes.c_void_p] * 8],
    )
