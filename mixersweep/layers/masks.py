"""Random masks of exactly so many nonzeros, one function for each structure of sparsity that a mask can have.

A mask is drawn from its nonzeros alone, never as a matrix: time and memory are O(nonzeros), up to a logarithm. It is
returned as the sorted flat positions, row · columns + column, int64, and each function is uniform over all masks of
its kind, unless its docstring says what it draws instead.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mask = Literal["exact", "bernoulli", "fixed_fan_in", "degree_regular", "n_of_m", "block", "expansion", "local"]

TRADES = 16
"""Rounds of trades between all rows of a degree-regular mask. Four-cycles and the second singular value of masks of
128 x 128 and 256 x 256 with 4 to 64 nonzeros a row are after 8 rounds what they are after 100."""


class Plane(NamedTuple):
    """Where the units of a layer lie on the image: their places (int64), counted row by row on side x side places."""

    rows: Tensor
    columns: Tensor
    side: int


def draw_mask(
    rows: int,
    columns: int,
    connections: int,
    kind: Mask,
    generator: torch.Generator,
    *,
    size: int = 4,
    plane: Plane | None = None,
) -> Tensor:
    """Sorted flat positions (int64) of the nonzeros of a random (rows, columns) mask of this kind.

    ``size`` is that of the blocks of ``block`` and of the groups of ``n_of_m``; ``local`` needs ``plane``.
    """
    if kind == "local":
        assert plane is not None
        return local(plane, connections, generator)
    if kind in ("n_of_m", "block"):
        sized = n_of_m if kind == "n_of_m" else block
        return sized(rows, columns, connections, generator, size=size)
    plain = {
        "exact": exact,
        "bernoulli": bernoulli,
        "fixed_fan_in": fixed_fan_in,
        "degree_regular": degree_regular,
        "expansion": expansion,
    }
    return plain[kind](rows, columns, connections, generator)


def exact(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """That many nonzeros anywhere."""
    return _subset(rows * columns, connections, generator)


def bernoulli(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Each entry independently with the mean density, so that only the mean number of nonzeros is ``connections``."""
    size = rows * columns  # a binomial number of nonzeros, then uniform: the same law as independent entries
    density = torch.tensor(connections / size, dtype=torch.float64)
    count = torch.tensor(float(size), dtype=torch.float64)
    return _subset(size, int(torch.binomial(count, density, generator=generator)), generator)


def fixed_fan_in(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Each row has the mean number of nonzeros, its floor or ceiling; which rows have one more is random."""
    fan_in, extra = divmod(connections, rows)
    fewer = torch.ones(rows, dtype=torch.bool)
    fewer[torch.randperm(rows, generator=generator)[:extra]] = False
    chosen = _distinct_in_rows(rows, columns, min(fan_in + 1, columns), generator)
    keep = torch.ones_like(chosen, dtype=torch.bool)
    keep[fewer, fan_in:] = False
    return (chosen + columns * torch.arange(rows)[:, None])[keep].sort().values


def n_of_m(rows: int, columns: int, connections: int, generator: torch.Generator, *, size: int) -> Tensor:
    """In each row, n of every ``size`` successive columns, n the floor or ceiling of the mean (N:M sparsity).

    Zhou et al. 2021 (2102.04010), who choose the n by their weights; here they are random. ``size`` divides columns.
    """
    return fixed_fan_in(rows * columns // size, size, connections, generator)


def degree_regular(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Each row and each column has the mean number of nonzeros, its floor or ceiling (a biregular random graph).

    A regular start is forgotten by trades: rows are paired at random, and what only one of the two has is dealt out
    anew between them, ``TRADES`` times. All masks of these degrees are equally likely in the limit (Carstens, Hamann,
    Meyer, Penschuck, Tran & Wagner 2018, "Parallel and I/O-efficient randomisation of massive networks using global
    curveball trades").
    """
    fan_in, extra = divmod(connections, rows)
    degrees = torch.full((rows,), fan_in)
    degrees[torch.randperm(rows, generator=generator)[:extra]] += 1
    row = torch.arange(rows).repeat_interleave(degrees)
    # successive places of a circle of all columns: no row meets itself, and no column is passed twice more than another
    column = torch.randperm(columns, generator=generator)[torch.arange(connections) % columns]
    for _ in range(TRADES):
        row = _trade(row, column, rows, columns, generator)
    return (row * columns + column).sort().values


def _trade(row: Tensor, column: Tensor, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """The rows of the nonzeros after each pair of rows has dealt out anew what only one of the two has."""
    order = torch.randperm(rows, generator=generator)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(rows)
    pair, second = rank[row] // 2, rank[row] % 2
    keys, sorting = (pair * columns + column).sort()
    alone = torch.ones(keys.numel() + 1, dtype=torch.bool)  # whether a nonzero's column is not the one's before it
    alone[1:-1] = keys[1:] != keys[:-1]
    own = sorting[alone[1:] & alone[:-1]]
    pairs = pair[own]
    dealt = own[(pairs + torch.rand(own.numel(), generator=generator, dtype=torch.float64)).argsort()]
    firsts = torch.bincount(pairs[second[own] == 0], minlength=(rows + 1) // 2)
    starts = torch.bincount(pairs, minlength=(rows + 1) // 2).cumsum(0).roll(1).index_fill(0, torch.tensor([0]), 0)
    place = torch.arange(own.numel()) - starts[pair[dealt]]
    row = row.clone()
    row[dealt] = order[2 * pair[dealt] + (place >= firsts[pair[dealt]])]
    return row


def block(rows: int, columns: int, connections: int, generator: torch.Generator, *, size: int) -> Tensor:
    """Dense blocks of ``size`` x ``size`` at random places of a grid (Gray, Radford & Kingma 2017, block-sparse).

    Blocks at the edges are cut where ``size`` does not divide the sizes of the matrix, and the last block drawn keeps
    as many of its entries, row by row, as are left of ``connections``.
    """
    down, across = -(-rows // size), -(-columns // size)
    missing = down * across * size**2 - rows * columns  # entries of the grid that lie outside
    enough = -(-(connections + missing) // size**2)
    drawn = _subset(down * across, enough, generator)[torch.randperm(enough, generator=generator)]
    inside = torch.arange(size**2)
    row = (drawn // across * size)[:, None] + inside // size
    column = (drawn % across * size)[:, None] + inside % size
    exists = (row < rows) & (column < columns)
    return (row * columns + column)[exists][:connections].sort().values


def expansion(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """The units of a narrow dense layer, each split into children that share its inputs disjointly.

    Fixed-parameter expansion (Kong et al. 2025, 2510.04500). connections / columns parents read all columns, and the
    one that is left over reads what is left; a parent's columns are dealt out at random to its children, rows in
    succession, so that each row has about the mean number of nonzeros and each column one nonzero for each parent.
    """
    parents, rest = divmod(connections, columns)
    last = max(1, round(rows * rest / connections)) if rest else 0
    found = []
    for parent in range(parents + (rest > 0)):
        inputs = torch.randperm(columns, generator=generator)[: columns if parent < parents else rest]
        if parent < parents:
            first, end = (parent * (rows - last) // parents, (parent + 1) * (rows - last) // parents)
        else:
            first, end = rows - last, rows
        child = first + torch.arange(inputs.numel()) * (end - first) // inputs.numel()
        found.append(child * columns + inputs)
    return torch.cat(found).sort().values if found else torch.empty(0, dtype=torch.int64)


def local(plane: Plane, connections: int, generator: torch.Generator) -> Tensor:
    """The nearest pairs of units on the image's plane: all within a radius, and of those at it a random part.

    The radius is what the number of connections leaves. Units near the border have fewer connections than others, as
    those of a convolution without padding.
    """
    row_places, column_places, side = plane
    columns, places = column_places.numel(), side**2
    counts = [torch.bincount(units, minlength=places) for units in (row_places, column_places)]
    place = torch.arange(places)
    apart = [(at[:, None] - at[None, :]) ** 2 for at in (place // side, place % side)]
    distance = (apart[0] + apart[1]).flatten()
    pairs = torch.outer(*counts).flatten()  # of units, for each pair of places
    order = distance.argsort(stable=True)
    distances, shell = distance[order].unique_consecutive(return_inverse=True)
    ends = torch.zeros_like(distances).index_add(0, shell, pairs[order]).cumsum(0)
    radius = int(torch.searchsorted(ends, connections))
    within = int(ends[radius - 1]) if radius else 0
    inside, at_radius = order[shell < radius], order[shell == radius]
    chosen = _subset(int(pairs[at_radius].sum()), connections - within, generator)
    by_place = [units.argsort(stable=True) for units in (row_places, column_places)]
    starts = [count.cumsum(0) - count for count in counts]

    def units(of: Tensor, number: Tensor) -> Tensor:
        """The flat positions of the pairs of units with these numbers, in the order of the pairs of places ``of``."""
        ends = pairs[of].cumsum(0)
        which = torch.searchsorted(ends, number, right=True)
        number = number - (ends - pairs[of])[which]
        row_place, column_place = of[which] // places, of[which] % places
        across = counts[1][column_place]
        row = by_place[0][starts[0][row_place] + number // across]
        column = by_place[1][starts[1][column_place] + number % across]
        return row * columns + column

    return torch.cat([units(inside, torch.arange(within)), units(at_radius, chosen)]).sort().values


def _distinct_in_rows(rows: int, columns: int, count: int, generator: torch.Generator) -> Tensor:
    """(rows, count): in each row distinct columns in random order, uniform, in O(rows·count²) at most."""
    if count**2 > columns:  # the largest of random keys, a few rows at a time
        some = max(1, 2**22 // columns)
        keys = (
            torch.rand(min(some, rows - r), columns, generator=generator, dtype=torch.float64)
            for r in range(0, rows, some)
        )
        return torch.cat([key.topk(count).indices for key in keys])
    drawn = torch.randint(columns, (rows, count), generator=generator)
    while True:  # a row with a column drawn twice is drawn anew as a whole
        again = (drawn.sort().values.diff() == 0).any(1).nonzero().squeeze(1)
        if not again.numel():
            return drawn
        drawn[again] = torch.randint(columns, (again.numel(), count), generator=generator)


def _subset(size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the first ``size`` integers, sorted, uniform over all subsets, in O(count) memory."""
    if count > size // 2:
        keep = torch.ones(size, dtype=torch.bool)
        keep[_subset(size, size - count, generator)] = False
        return keep.nonzero().squeeze(1)
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:  # distinct draws are a uniform subset of their own size
        more = torch.randint(size, (count - drawn.numel() + count // 8 + 16,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    return drawn[torch.randperm(drawn.numel(), generator=generator)[:count]].sort().values
