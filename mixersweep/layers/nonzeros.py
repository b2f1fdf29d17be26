"""Products of a sparse matrix in CSR form with features-first x, (width, B).

On a CPU with AVX2 or AVX-512 they are computed by ``nonzeros.c``, on a GPU by ``nonzeros_triton.py``. Both sum each
number in an order that depends only on its own row or column, so it is the same in every run, and the same when
the matrix is a block of a ``block_diagonal`` one. Where neither is available, torch computes them: on a CPU by an
embedding bag, whose rows are weighted sums of rows of x, and MKL's sampled product; on a GPU by cuSPARSE, whose
gradients differ from run to run in their last digits.
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
    """The positions of a matrix's nonzeros, by rows (CSR) and by columns (CSC); int32, or int64 where sizes need it."""

    row_starts: Tensor
    column_of: Tensor
    column_starts: Tensor
    rows_by_column: Tensor
    by_column: Tensor
    """For the nonzeros in the order of the columns, their indices into ``column_of`` and the values."""

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        return self.row_starts.numel() - 1, self.column_starts.numel() - 1

    def product(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return A x + bias (rows, B), for (nonzeros,) values, x (columns, B) and a (rows,) bias."""
        return product(self.row_starts, self.column_of, values, x, bias)

    def gradients(self, values: Tensor, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the values, for a (rows, B) gradient of the product."""
        return gradients(self.column_starts, self.rows_by_column, self.by_column, values, x, gradient)


def stack_structures(structures: Sequence[Structure]) -> Structure:
    """Stack the structures of R runs, equal in shape and number of nonzeros, along a leading axis: (R, ...)."""
    return Structure(*(torch.stack([getattr(each, f.name) for each in structures]) for f in fields(Structure)))


def block_diagonal(structure: Structure) -> Structure:
    """Join the stacked structures (R, ...) of R runs into one block-diagonal matrix.

    Its values, and the rows of its x, are those of the runs one after another. With kernels of our own, and a batch
    that they take, every product equals that of each run alone to the bit.
    """
    runs, nonzeros = structure.column_of.shape
    rows, columns = structure.row_starts.shape[1] - 1, structure.column_starts.shape[1] - 1
    kind = torch.int32 if runs * max(nonzeros, rows, columns) < 2**31 else torch.int64
    run = torch.arange(runs, device=structure.column_of.device, dtype=kind)[:, None]

    def joined(starts: Tensor) -> Tensor:
        """Concatenate the row starts of all runs; the end of one run is the start of the next."""
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
    """Return A x + bias (rows, B) for starts (rows + 1,), column_of and values (nonzeros,), and x (columns, B)."""
    chosen = _opaque_product if torch.compiler.is_compiling() else _product
    y: Tensor = chosen(starts, column_of, values, x, bias)
    return y


def gradients(
    starts: Tensor, row_of: Tensor, order: Tensor, values: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, Aᵀ gradient, and of the values, gradient xᵀ at the nonzeros, in ``product``.

    The nonzeros are listed by columns, with (columns + 1,) starts and their rows; ``order`` are the indices of their
    values.
    """
    chosen = _opaque_gradients if torch.compiler.is_compiling() else _gradients
    of_x, of_values = chosen(starts, row_of, order, values, x, gradient)
    return of_x, of_values


def implementation(device: torch.device) -> str:
    """Return which implementation computes the products on a device, ``own`` or ``torch``; last digits differ."""
    return "own" if why_not_own(device) is None else "torch"


def why_not_own(device: torch.device = CPU) -> str | None:
    """Return the reason why the kernels of our own are unavailable on a device, None where they are available."""
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
    """Compute ``product`` by torch's kernels, for a contiguous x."""
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
    """Compute ``gradients`` by torch's kernels, for a contiguous x and gradient."""
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
    with warnings.catch_warnings():  # torch warns once per process about a format that it has had since 1.10
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        # torch 2.11 and 2.12 warn about the default although check_invariants is given.
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


def _library_for(x: Tensor, values: Tensor, starts: Tensor) -> ctypes.CDLL | ModuleType | None:
    """Return the kernels of our own, or None where they do not take these tensors.

    They take fp32 and positions below 2^31, and on a CPU a batch of at least one vector of images.
    """
    if not (x.dtype == values.dtype == torch.float32 and starts.dtype == torch.int32):
        return None
    if x.is_cuda:
        made = _triton(x.device)
        return None if isinstance(made, str) else made
    library = _library() if x.is_cpu and x.shape[1] >= kernels.lanes() else None
    return None if isinstance(library, str) else library


def _triton(device: torch.device) -> ModuleType | str:
    """Return ``nonzeros_triton.py``, or the reason why it is unavailable."""
    return _load_triton(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _load_triton(index: int) -> ModuleType | str:
    """Import ``nonzeros_triton.py`` and try it once on that GPU, as Triton also needs a driver and a C compiler."""
    try:
        from mixersweep.layers import nonzeros_triton

        starts, column_of = (torch.tensor(numbers, dtype=torch.int32, device=index) for numbers in ([0, 1], [0]))
        x = torch.ones(1, 1, device=index)
        found = nonzeros_triton.product(starts, column_of, x[0], x).item()
        return nonzeros_triton if found == 1 else f"Triton's product of 1 and 1 is {found}"
    except Exception as error:  # whatever Triton, driver or compiler raise, torch's kernels take over
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"


@cache
def _library() -> ctypes.CDLL | str:
    """Return ``nonzeros.c``, compiled and loaded, or the reason why it is unavailable."""
    sizes_and_threads = [*[ctypes.c_int64] * 2, ctypes.c_int]
    return kernels.library(
        "nonzeros",
        mixersweep_product=[*sizes_and_threads, *[ctypes.c_void_p] * 6],
        mixersweep_gradients=[*sizes_and_threads, *[ctypes.c_void_p] * 8],
    )
