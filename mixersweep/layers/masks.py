"""Random masks with a given number of nonzeros, one function for each kind of sparsity.

Masks are never built as dense matrices: time and memory are O(nonzeros), up to a logarithm. A mask is returned as its
sorted flat positions row · columns + column, (connections,) int64, and is uniform over all masks of its kind unless
the docstring says otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixersweep.kinds import MaskKind

TRADES = 16
"""Rounds of trades between all rows of a degree-regular mask. After 8 rounds, four-cycles and the second singular
value of masks of 128 x 128 and 256 x 256 with 4 to 64 nonzeros per row are the same as after 100."""


class Plane(NamedTuple):
    """The image positions of a layer's output (rows) and input (columns) units: int64, row-major on side x side."""

    rows: Tensor
    columns: Tensor
    side: int


def draw_mask(
    rows: int,
    columns: int,
    connections: int,
    kind: MaskKind,
    generator: torch.Generator,
    *,
    size: int = 4,
    plane: Plane | None = None,
) -> Tensor:
    """Draw a random (rows, columns) mask of this kind: the sorted flat positions (int64) of its nonzeros.

    ``size`` is the block size of ``block`` and the group size of ``n_of_m``; ``local`` needs ``plane``.
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
        "diagonal": diagonal,
    }
    return plain[kind](rows, columns, connections, generator)


def exact(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Place exactly ``connections`` nonzeros anywhere."""
    return _subset(rows * columns, connections, generator)


def bernoulli(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Draw each entry independently with the mean density: only the expected number of nonzeros is ``connections``."""
    size = rows * columns  # a binomial number of nonzeros, then uniform: the same law as independent entries
    density = torch.tensor(connections / size, dtype=torch.float64)
    count = torch.tensor(float(size), dtype=torch.float64)
    return _subset(size, int(torch.binomial(count, density, generator=generator)), generator)


def fixed_fan_in(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Give each row the mean number of nonzeros, rounded down or up; which rows have one more is random."""
    fan_in, extra = divmod(connections, rows)
    fewer = torch.ones(rows, dtype=torch.bool)
    fewer[torch.randperm(rows, generator=generator)[:extra]] = False
    chosen = _distinct_in_rows(rows, columns, min(fan_in + 1, columns), generator)
    keep = torch.ones_like(chosen, dtype=torch.bool)
    keep[fewer, fan_in:] = False
    return (chosen + columns * torch.arange(rows)[:, None])[keep].sort().values


def n_of_m(rows: int, columns: int, connections: int, generator: torch.Generator, *, size: int) -> Tensor:
    """Place n nonzeros in each group of ``size`` successive columns of a row (N:M sparsity).

    Zhou et al. 2021 (arXiv 2102.04010) choose them by the size of their weights; here they are random. n is the mean,
    rounded down or up; ``size`` must divide ``columns``.
    """
    return fixed_fan_in(rows * columns // size, size, connections, generator)


def degree_regular(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Give each row and column its mean number of nonzeros, rounded down or up (a biregular random graph).

    A regular mask is randomised by ``TRADES`` rounds of trades: rows are paired at random, and the columns that only
    one of a pair has are redistributed between the two at random. In the limit all masks of these degrees are
    equally likely (Carstens, Hamann, Meyer, Penschuck, Tran & Wagner 2018, "Parallel and I/O-efficient randomisation
    of massive networks using global curveball trades").
    """
    fan_in, extra = divmod(connections, rows)
    degrees = torch.full((rows,), fan_in)
    degrees[torch.randperm(rows, generator=generator)[:extra]] += 1
    row = torch.arange(rows).repeat_interleave(degrees)
    # each row takes the next columns in a cycle: no column twice in a row, and all columns equally often, up to one
    column = torch.randperm(columns, generator=generator)[torch.arange(connections) % columns]
    for _ in range(TRADES):
        row = _trade(row, column, rows, columns, generator)
    return (row * columns + column).sort().values


def _trade(row: Tensor, column: Tensor, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Do one round of trades between random pairs of rows; returns the new row of each nonzero."""
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
    """Place dense blocks of ``size`` x ``size`` at random cells of a grid (Gray, Radford & Kingma 2017).

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
    """Split each unit of a narrow dense layer into children, among which its inputs are divided.

    Fixed-parameter expansion (Kong et al. 2025, arXiv 2510.04500). connections / columns parents read all columns, and
    a last one as many as are left over; a parent's columns are dealt out at random to its children, rows in
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


def diagonal(rows: int, columns: int, connections: int, generator: torch.Generator) -> Tensor:
    """Fill random cyclic diagonals, row i with the columns i + d of distinct offsets d (modulo ``columns``).

    DynaDiag (Tyagi et al. 2025, arXiv 2506.11449) learns which diagonals; here they are drawn. The last one drawn has a
    random part of its rows, so that each row has the mean number of nonzeros, rounded down or up, and in a square mask
    each column has so too.
    """
    whole, rest = divmod(connections, rows)
    offsets = torch.randperm(columns, generator=generator)[: whole + (rest > 0)]
    row = torch.arange(rows)
    some = torch.randperm(rows, generator=generator)[:rest]
    entries = [
        at * columns + (at + offset) % columns for at, offset in zip([row] * whole + [some], offsets, strict=False)
    ]
    return torch.cat(entries).sort().values if entries else torch.empty(0, dtype=torch.int64)


def local(plane: Plane, connections: int, generator: torch.Generator) -> Tensor:
    """Connect the nearest pairs of units on the image: all within a radius, and some of those at it, at random.

    The number of connections determines the radius. Units near the border have fewer connections than others.
    """
    row_places, column_places, side = plane
    columns, places = column_places.numel(), side**2
    counts = [torch.bincount(units, minlength=places) for units in (row_places, column_places)]
    place = torch.arange(places)
    apart = [(at[:, None] - at[None, :]) ** 2 for at in (place // side, place % side)]
    distance = (apart[0] + apart[1]).flatten()
    pairs = torch.outer(*counts).flatten()  # the number of pairs of units for each pair of image positions
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
        """Flat mask positions of unit pairs ``number``, counted along the pairs of image positions ``of``."""
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
    """Draw ``count`` distinct columns per row, uniform, in random order: (rows, count), in O(rows·count²) at most."""
    if count**2 > columns:  # take the columns with the largest random keys, a few rows at a time
        some = max(1, 2**22 // columns)
        keys = (
            torch.rand(min(some, rows - r), columns, generator=generator, dtype=torch.float64)
            for r in range(0, rows, some)
        )
        return torch.cat([key.topk(count).indices for key in keys])
    drawn = torch.randint(columns, (rows, count), generator=generator)
    while True:  # a row in which a column was drawn twice is redrawn as a whole
        again = (drawn.sort().values.diff() == 0).any(1).nonzero().squeeze(1)
        if not again.numel():
            return drawn
        drawn[again] = torch.randint(columns, (again.numel(), count), generator=generator)


def _subset(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw a sorted uniform subset of ``count`` of the integers 0 to size - 1, in O(count) memory."""
    if count > size // 2:
        keep = torch.ones(size, dtype=torch.bool)
        keep[_subset(size, size - count, generator)] = False
        return keep.nonzero().squeeze(1)
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:  # distinct draws are a uniform subset of their size
        more = torch.randint(size, (count - drawn.numel() + count // 8 + 16,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    return drawn[torch.randperm(drawn.numel(), generator=generator)[:count]].sort().values
