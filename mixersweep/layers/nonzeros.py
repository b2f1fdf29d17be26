"""Products with the nonzeros of a sparse matrix, in CSR form, of features that come first: (width, batch).

On a CPU with AVX2 or AVX-512 they are ``nonzeros.c``'s, which the machine's C compiler makes ready in half a second,
once; on a GPU those of ``nonzeros_triton.py``. Both sum each number in an order that its own row or column gives, so
that it is the same in every run, and in a matrix of many along a diagonal (``stacked``) the same as in its own. Where
neither can be had they are torch's: an embedding bag, whose rows are weighted sums of rows of x, and MKL's sampled
product on a CPU; cuSPARSE's on a GPU, whose gradients differ from run to run in their last digits.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.layers import kernels
from mixersweep.layers.kernels import address

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Structure:
    """Where the nonzeros of a matrix are, row by row and column by column."""

    row_starts: Tensor
    column_of: Tensor
    column_starts: Tensor
    rows_by_column: Tensor
    by_column: Tensor
    """The places in ``column_of``, and so in the values, of the nonzeros taken column by column."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.row_starts.numel() - 1, self.column_starts.numel() - 1

    def product(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """A x + bias, of (nonzeros,) values, (columns, batch) and (rows,)."""
        return product(self.row_starts, self.column_of, values, x, bias)

    def gradients(self, values: Tensor, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Those of x and of the values, for a (rows, batch) gradient of the product."""
        return gradients(self.column_starts, self.rows_by_column, self.by_column, values, x, gradient)


def side_by_side(structures: Sequence[Structure]) -> Structure:
    """The structures of R runs, of one shape and number of nonzeros, with the runs in front: (R, ...)."""
    return Structure(*(torch.stack([getattr(each, f.name) for each in structures]) for f in fields(Structure)))


def stacked(structure: Structure) -> Structure:
    """One matrix with those of R runs along its diagonal, whose values are theirs, one after another.

    ``structure`` has the runs in front, (R, ...). Features of one are rows of x after those of the one before. Every
    product is, to the bit, that of each alone, with kernels of our own and at a batch that they take.
    """
    runs, nonzeros = structure.column_of.shape
    rows, columns = structure.row_starts.shape[1] - 1, structure.column_starts.shape[1] - 1
    kind = torch.int32 if runs * max(nonzeros, rows, columns) < 2**31 else torch.int64
    run = torch.arange(runs, device=structure.column_of.device, dtype=kind)[:, None]

    def joined(starts: Tensor) -> Tensor:
        """Where one ends the next begins, which is said once."""
        first = (starts[:, :-1] + nonzeros * run).flatten()
        return torch.cat([first, first.new_full((1,), runs * nonzeros)])

    return Structure(
        joined(structure.row_starts),
        (structure.column_of + columns * run).flatten(),
        joined(structure.column_starts),
        (structure.rows_by_column + rows * run).flatten(),
        (structure.by_column + nonzeros * run).flatten(),
    )


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
    return "own" if why_not_own(device) is None else "torch"


def why_not_own(device: torch.device = CPU) -> str | None:
    """What stands in the way of the kernels of our own on a device."""
    if device.type not in ("cpu", "cuda"):
        return f"there are none for {device.type}"
    made = _library() if device.type == "cpu" else _triton(device)
    return made if isinstance(made, str) else None


def _product(starts: Tensor, column_of: Tensor, values: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    x = x.contiguous()
    library = _library_for(x, values, starts)
    if library is None:
        return torch_product(starts, column_of, values, x, bias)
    if isinstance(library, ModuleType):
        y: Tensor = library.product(starts, column_of, values, x, bias)
        return y
    y = x.new_empty(starts.numel() - 1, x.shape[1])
    tensors = starts, column_of, values, bias, x, y
    library.mixersweep_product(*y.shape, kernels.threads_for(values.numel() * x.shape[1]), *map(address, tensors))
    return y


def _gradients(
    starts: Tensor, row_of: Tensor, order: Tensor, values: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    x, gradient = x.contiguous(), gradient.contiguous()
    library = _library_for(x, values, starts)
    if library is None:
        return torch_gradients(starts, row_of, order, values, x, gradient)
    if isinstance(library, ModuleType):
        of_x, of_values = library.gradients(starts, row_of, order, values, x, gradient)
        return of_x, of_values
    of_x, of_values = torch.empty_like(x), torch.empty_like(values)
    tensors = starts, row_of, order, values, x, gradient, of_x, of_values
    library.mixersweep_gradients(*x.shape, kernels.threads_for(values.numel() * x.shape[1]), *map(address, tensors))
    return of_x, of_values


def torch_product(starts: Tensor, column_of: Tensor, values: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """``product`` by torch's kernels, of contiguous x."""
    if x.is_cpu:
        y = F.embedding_bag(
            column_of, x.detach(), starts, mode="sum", per_sample_weights=values.detach(), include_last_offset=True
        )
    else:
        matrix = _csr(starts, column_of, values, (starts.numel() - 1, x.shape[0]))
        y = x.new_empty(matrix.shape[0], x.shape[1])
        torch.addmm(y, matrix, x, beta=0, out=y)  # `@` would first fill fresh memory with zeros, and add
    return y if bias is None else y.add_(bias[:, None])


def torch_gradients(
    starts: Tensor, row_of: Tensor, order: Tensor, values: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """``gradients`` by torch's kernels, of a contiguous x and gradient."""
    of_x = torch_product(starts, row_of, values.index_select(0, order), gradient, None)
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


def _library_for(x: Tensor, values: Tensor, starts: Tensor) -> ctypes.CDLL | ModuleType | None:
    """The kernels of our own, for what they take: fp32, positions below 2^31, on a CPU a vector's width of images."""
    if not (x.dtype == values.dtype == torch.float32 and starts.dtype == torch.int32):
        return None
    if x.is_cuda:
        made = _triton(x.device)
        return None if isinstance(made, str) else made
    library = _library() if x.is_cpu and x.shape[1] >= kernels.lanes() else None
    return None if isinstance(library, str) else library


def _triton(device: torch.device) -> ModuleType | str:
    """``nonzeros_triton.py``, or why there is none."""
    return _tried(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _tried(index: int) -> ModuleType | str:
    """It is tried on that GPU once, for Triton needs a driver and a C compiler too."""
    try:
        from mixersweep.layers import nonzeros_triton

        starts, place = (torch.tensor(numbers, dtype=torch.int32, device=index) for numbers in ([0, 1], [0]))
        x = torch.ones(1, 1, device=index)
        found = nonzeros_triton.product(starts, place, x[0], x).item()
        return nonzeros_triton if found == 1 else f"Triton's product of 1 and 1 is {found}"
    except Exception as error:  # whatever Triton, the driver or the compiler may raise: torch's kernels serve
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"


@cache
def _library() -> ctypes.CDLL | str:
    """``nonzeros.c``, or why there is none."""
    sizes_and_threads = [*[ctypes.c_int64] * 2, ctypes.c_int]
    return kernels.library(
        "nonzeros",
        mixersweep_product=[*sizes_and_threads, *[ctypes.c_void_p] * 6],
        mixersweep_gradients=[*sizes_and_threads, *[ctypes.c_void_p] * 8],
    )
