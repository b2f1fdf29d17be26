"""What the kernels of ``nonzeros_triton.py`` must do: by Triton's interpreter on a CPU, or compiled on a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable

import torch
from torch import Tensor

from mixersweep.layers import SparseWeights, draw_mask, nonzeros_triton
from mixersweep.layers.nonzeros import Structure, block_diagonal, stack_structures
from mixersweep.layers.nonzeros_triton import Schedule

SIZES = {
    "tall": (17, 6, 40),
    "wide": (5, 23, 40),
    "few": (11, 9, 4),
    "full": (4, 5, 20),
    "one": (1, 1, 1),
    "none": (3, 4, 0),
    "one_column": (9, 1, 5),
    "long_row": (4, 40, 49),
    "long_column": (40, 4, 49),
}
BATCHES = (1, 7, 128, 130)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def structure_of(size: str, seed: int = 0) -> Structure:
    """Random, but for the long ones: one row, or column, is full and has nearly all of the nonzeros."""
    rows, columns, count = SIZES[size]
    if not size.startswith("long"):
        positions = draw_mask(rows, columns, count, "exact", seeded(seed))
    else:
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        mask[2] = True
        mask[:, 2] = True
        mask[3, 3:9] = True
        positions = mask.flatten().nonzero().squeeze(1)
    return SparseWeights(columns, rows, positions).structure


def moved(structure: Structure, device: torch.device) -> Structure:
    return Structure(*(getattr(structure, field.name).to(device) for field in dataclasses.fields(Structure)))


def dense(structure: Structure, values: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix in float64, and where its nonzeros are."""
    starts, rows = structure.row_starts.long(), structure.shape[0]
    where = torch.stack([torch.repeat_interleave(torch.arange(rows), starts.diff()), structure.column_of.long()])
    matrix = torch.zeros(structure.shape, dtype=torch.float64)
    matrix[where[0], where[1]] = values.double()
    return matrix, where


def products(
    structure: Structure,
    values: Tensor,
    x: Tensor,
    gradient: Tensor,
    bias: Tensor | None = None,
    how: Schedule | None = None,
) -> list[Tensor]:
    """The output, and the gradients of x and of the values."""
    y = nonzeros_triton.product(structure.row_starts, structure.column_of, values, x, bias, how)
    by_column = structure.column_starts, structure.rows_by_column, structure.by_column
    return [y, *nonzeros_triton.gradients(*by_column, values, x, gradient)]


def check_exact(size: str, batch: int, device: torch.device) -> None:
    """Of small integers, whose sums of products fp32 has exactly, every number is that of the dense matrix."""
    structure, generator = structure_of(size), seeded(batch)
    (rows, columns), count = structure.shape, structure.column_of.numel()
    values, x, gradient, bias = (
        torch.randint(-9, 10, shape, generator=generator).float()
        for shape in ((count,), (columns, batch), (rows, batch), (rows,))
    )
    there = moved(structure, device)
    matrix, where = dense(structure, values)
    expected = matrix @ x.double(), matrix.t() @ gradient.double(), (gradient.double() @ x.double().t())[*where]
    for added in (None, bias):
        tensors = (values, x, gradient) if added is None else (values, x, gradient, added)
        y, *rest = (found.double().cpu() for found in products(there, *(tensor.to(device) for tensor in tensors)))
        assert torch.equal(y, expected[0] if added is None else expected[0] + added.double()[:, None])
        assert all(torch.equal(*both) for both in zip(rest, expected[1:], strict=True))


def check_views(device: torch.device) -> None:
    """Features and gradients may be views, that begin at any address."""
    structure = moved(structure_of("tall"), device)
    rows, columns = structure.shape
    values = torch.randn(40, generator=seeded(1)).to(device)
    x = torch.randn(35, columns, generator=seeded(2)).to(device).t()
    gradient = torch.randn(1, generator=seeded(3)).to(device).expand(rows, 35)
    plain = products(structure, values, x.contiguous(), gradient.contiguous())
    shifted = torch.empty(x.numel() + 1, device=device)[1:].view(x.shape).copy_(x)
    for view in (x, shifted):
        assert all(torch.equal(*both) for both in zip(products(structure, values, view, gradient), plain, strict=True))


def check_stacked(size: str, batch: int, device: torch.device) -> None:
    """What a run computes is the same to the bit alone, and wherever it is among others."""
    structures = [moved(structure_of(size, seed), device) for seed in range(3)]
    (rows, columns), count = structures[0].shape, structures[0].column_of.numel()
    values, x, gradient, bias = (
        torch.randn(shape, generator=seeded(9)).to(device)
        for shape in ((3, count), (3, columns, batch), (3, rows, batch), (3, rows))
    )
    alone = [
        products(structure, *(tensor[run].contiguous() for tensor in (values, x, gradient, bias)))
        for run, structure in enumerate(structures)
    ]
    assert any(bool(found.any()) for found in alone[0])
    for order in ([0, 1, 2], [2, 0]):
        ones = [tensor[order].flatten(0, 1) for tensor in (values, x, gradient, bias)]
        together = products(block_diagonal(stack_structures([structures[run] for run in order])), *ones)
        for place, run in enumerate(order):
            for all_runs, one in zip(together, alone[run], strict=True):
                assert torch.equal(all_runs.unflatten(0, (len(order), -1))[place], one)


def check_schedules(batch: int, device: torch.device) -> None:
    """However rows are shared out, no bit of A x changes."""
    structure = moved(structure_of("tall"), device)
    values, x, gradient = (
        torch.randn(shape, generator=seeded(5)).to(device) for shape in ((40,), (6, batch), (17, batch))
    )
    plain = products(structure, values, x, gradient)[0]
    for rows, turn, (tile, warps, groups) in itertools.product((4, 16), (1, 8), ((32, 1, 1), (128, 2, 3))):
        how = Schedule(rows=rows, warps=warps, groups=groups, tile=tile, turn=turn)
        assert torch.equal(products(structure, values, x, gradient, how=how)[0], plain), how


def checks(device: torch.device) -> dict[str, Callable[[], None]]:
    """All, by their names."""
    named: dict[str, Callable[[], None]] = {"views": lambda: check_views(device)}
    for size, batch in itertools.product(SIZES, BATCHES):
        named[f"exact-{size}-{batch}"] = lambda size=size, batch=batch: check_exact(size, batch, device)
    named["exact-wide-600"] = lambda: check_exact("wide", 600, device)
    for size, batch in (("tall", 7), ("tall", 128), ("few", 130), ("one", 600)):
        named[f"stacked-{size}-{batch}"] = lambda size=size, batch=batch: check_stacked(size, batch, device)
    for batch in (24, 130):
        named[f"schedules-{batch}"] = lambda batch=batch: check_schedules(batch, device)
    return named


def outcomes(device: torch.device) -> dict[str, str]:
    """Of each check, what went wrong, or nothing."""
    found = {}
    for name, check in checks(device).items():
        try:
            check()
            found[name] = ""
        except Exception as error:  # whatever it is belongs to this check
            found[name] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    print(json.dumps(outcomes(torch.device("cpu"))))
