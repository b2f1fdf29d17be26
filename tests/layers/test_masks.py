"""Masks of every kind: exact counts, the structure that each promises, and all masks of a kind equally likely."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from mixersweep.kinds import MaskKind
from mixersweep.layers import Plane, SparseWeights, draw_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evenly(rows: int, columns: int, side: int) -> Plane:
    """Units spread over all places."""
    return Plane(torch.arange(rows) * side**2 // rows, torch.arange(columns) * side**2 // columns, side)


@pytest.mark.parametrize("connections", [0, 1, 9, 40, 100, 142, 143])
def test_an_exact_mask_has_exactly_its_connections(connections: int) -> None:
    positions = draw_mask(11, 13, connections, "exact", seeded(connections))
    assert positions.numel() == positions.unique().numel() == connections
    assert bool((positions.sort().values == positions).all())
    assert connections == 0 or (int(positions.min()) >= 0 and int(positions.max()) < 143)


def test_an_exact_mask_is_uniform_over_positions_and_over_pairs() -> None:
    rows, columns, connections, trials = 3, 4, 5, 6000
    hits = torch.zeros(12, 12)
    generator = seeded()
    for _ in range(trials):
        drawn = torch.zeros(12)
        drawn[draw_mask(rows, columns, connections, "exact", generator)] = 1
        hits += torch.outer(drawn, drawn)
    singles = hits.diagonal() / trials
    pairs = hits[~torch.eye(12, dtype=torch.bool)] / trials
    assert (singles - 5 / 12).abs().max() < 5 * math.sqrt(5 / 12 * 7 / 12 / trials)
    assert (pairs - 5 / 12 * 4 / 11).abs().max() < 5 * math.sqrt(0.15 * 0.85 / trials)


def test_a_bernoulli_mask_has_a_binomial_number_of_connections() -> None:
    generator = seeded()
    counts = torch.tensor([draw_mask(20, 30, 120, "bernoulli", generator).numel() for _ in range(2000)]).double()
    assert abs(counts.mean() - 120) < 5 * math.sqrt(96 / 2000)
    assert abs(counts.var() / 96 - 1) < 0.2


def test_a_fixed_fan_in_mask_gives_each_row_floor_or_ceil_and_the_exact_total() -> None:
    positions = draw_mask(7, 10, 24, "fixed_fan_in", seeded())
    per_row = torch.bincount(positions // 10, minlength=7)
    assert sorted(per_row.tolist()) == [3, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize(("columns", "connections"), [(5, 12), (40, 12)])  # by random keys, by drawing anew
def test_a_fixed_fan_in_mask_is_uniform_within_a_row(columns: int, connections: int) -> None:
    trials = 4000
    hits = torch.zeros(6, columns)
    generator = seeded()
    for _ in range(trials):
        positions = draw_mask(6, columns, connections + 3, "fixed_fan_in", generator)
        assert positions.unique().numel() == connections + 3
        hits[positions // columns, positions % columns] += 1
    share = (connections + 3) / (6 * columns)
    assert (hits / trials - share).abs().max() < 5 * math.sqrt(share / trials)


def test_masks_far_wider_than_memory_are_drawn_from_their_nonzeros_alone() -> None:
    positions = draw_mask(2**20, 2**20, 1000, "exact", seeded())
    layer = SparseWeights(2**20, 2**20, positions)
    layer.initialize(seeded())
    x = torch.randn(1, 2**20, generator=seeded())
    y = layer(x)
    expected = torch.zeros(2**20).index_add(0, positions // 2**20, layer.weight * x[0, positions % 2**20])
    torch.testing.assert_close(y[0], expected)


EXACT: list[MaskKind] = ["exact", "fixed_fan_in", "degree_regular", "n_of_m", "block", "expansion", "local"]


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("connections", [0, 1, 11, 12, 13, 100, 131, 132])
def test_every_kind_has_exactly_its_connections(kind: MaskKind, connections: int) -> None:
    positions = draw_mask(11, 12, connections, kind, seeded(1), size=4, plane=evenly(11, 12, 3))
    assert positions.dtype == torch.int64
    assert positions.numel() == positions.unique().numel() == connections
    assert torch.equal(positions, positions.sort().values)
    assert connections == 0 or (int(positions.min()) >= 0 and int(positions.max()) < 132)


def degrees(positions: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.bincount(positions // columns, minlength=rows), torch.bincount(positions % columns, minlength=columns)


def is_regular(positions: Tensor, rows: int, columns: int) -> bool:
    return all(bool(of.max() - of.min() <= 1) for of in degrees(positions, rows, columns))


def is_n_of_m(positions: Tensor, rows: int, columns: int) -> bool:
    groups = torch.bincount(positions // 2, minlength=rows * columns // 2)
    return bool(groups.max() - groups.min() <= 1)


def is_in_blocks(positions: Tensor, rows: int, columns: int) -> bool:
    cells = Counter((int(p) // columns // 2, int(p) % columns // 2) for p in positions)
    return sum(count < 4 for count in cells.values()) == 0


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "connections", "belongs"),
    [
        ("degree_regular", 4, 4, 8, is_regular),
        ("degree_regular", 4, 3, 7, is_regular),
        ("degree_regular", 3, 4, 5, is_regular),
        ("n_of_m", 3, 4, 8, is_n_of_m),
        ("block", 4, 4, 8, is_in_blocks),
    ],
)
def test_all_masks_of_a_kind_are_equally_likely(
    kind: MaskKind, rows: int, columns: int, connections: int, belongs: Callable[[Tensor, int, int], bool]
) -> None:
    """Chi-squared over every mask that there is of the kind: within five deviations of its mean."""
    every = [
        subset
        for subset in combinations(range(rows * columns), connections)
        if belongs(torch.tensor(subset), rows, columns)
    ]
    generator, draws = seeded(), 10 * len(every)
    counts = Counter(
        tuple(draw_mask(rows, columns, connections, kind, generator, size=2).tolist()) for _ in range(draws)
    )
    assert set(counts) <= set(every)
    squared = sum((counts[mask] - 10) ** 2 / 10 for mask in every)
    assert abs(squared - (len(every) - 1)) < 5 * math.sqrt(2 * (len(every) - 1))


@pytest.mark.parametrize(("rows", "columns", "connections"), [(64, 48, 700), (50, 60, 33), (30, 30, 899)])
def test_a_degree_regular_mask_has_floor_or_ceil_in_every_row_and_column(
    rows: int, columns: int, connections: int
) -> None:
    assert is_regular(draw_mask(rows, columns, connections, "degree_regular", seeded()), rows, columns)


def test_trades_forget_their_start() -> None:
    """Pairs of rows with two columns in common are as many as in masks whose rows are drawn one by one."""

    def shared(kind: MaskKind, seed: int) -> float:
        matrix = torch.zeros(128, 128, dtype=torch.float64)
        matrix.view(-1)[draw_mask(128, 128, 1024, kind, seeded(seed))] = 1
        common = (matrix @ matrix.t()).triu(1)
        return float((common * (common - 1) / 2).sum())

    regular = torch.tensor([shared("degree_regular", seed) for seed in range(40)])
    free = torch.tensor([shared("fixed_fan_in", seed) for seed in range(40)])
    # a column of d nonzeros is in d (d - 1) / 2 pairs: a binomial d has 1 - 1/128 more of them than a fixed one
    expected = free.mean() * (7 / 8) ** 2 / (1 - 1 / 128) ** 2
    assert abs(regular.mean() - expected) < 5 * math.hypot(regular.std(), free.std()) / math.sqrt(40)


def test_the_blocks_of_a_mask_are_dense_but_for_one_and_for_the_edges() -> None:
    rows, columns, size = 18, 21, 4
    positions = draw_mask(rows, columns, 123, "block", seeded(), size=size)
    counts = Counter((int(p) // columns // size, int(p) % columns // size) for p in positions)
    whole = {(r, c): min(size, rows - r * size) * min(size, columns - c * size) for r, c in counts}
    assert sum(counts[cell] < whole[cell] for cell in counts) <= 1


@pytest.mark.parametrize(("rows", "columns", "connections"), [(16, 8, 32), (24, 24, 100), (7, 40, 35), (9, 5, 44)])
def test_the_children_of_a_parent_share_its_inputs_disjointly(rows: int, columns: int, connections: int) -> None:
    positions = draw_mask(rows, columns, connections, "expansion", seeded())
    parents, rest = divmod(connections, columns)
    of_rows, of_columns = degrees(positions, rows, columns)
    assert sorted(of_columns.tolist()) == [parents] * (columns - rest) + [parents + 1] * rest
    # rows in succession belong to one parent until their inputs are all columns: none comes twice before
    ends = of_rows.cumsum(0)
    row, column = positions // columns, positions % columns
    for parent in range(parents):
        mine = column[(ends[row] > parent * columns) & (ends[row] <= (parent + 1) * columns)]
        assert torch.equal(mine.sort().values, torch.arange(columns))


def test_an_expansion_gives_inputs_to_children_at_random() -> None:
    generator, hits = seeded(), torch.zeros(4, 6)
    for _ in range(3000):
        hits.view(-1)[draw_mask(4, 6, 12, "expansion", generator)] += 1
    assert (hits / 3000 - 0.5).abs().max() < 5 * math.sqrt(0.25 / 3000)


@pytest.mark.parametrize("connections", [1, 20, 150, 700, 2399])
@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_local_mask_has_the_nearest_pairs(side: int, connections: int) -> None:
    plane = Plane(
        torch.randint(side**2, (48,), generator=seeded(1)), torch.randint(side**2, (50,), generator=seeded(2)), side
    )
    positions = draw_mask(48, 50, connections, "local", seeded(), plane=plane)
    row, column = (torch.stack([at // side, at % side]) for at in plane[:2])
    distances = ((row[:, :, None] - column[:, None, :]) ** 2).sum(0).flatten()
    assert torch.equal(distances[positions].sort().values, distances.sort().values[:connections])


def test_pairs_at_the_radius_are_drawn_uniformly() -> None:
    plane, generator, hits = evenly(4, 4, 2), seeded(), torch.zeros(16)
    for _ in range(3000):
        hits[draw_mask(4, 4, 7, "local", generator, plane=plane)] += 1
    inside = torch.eye(4).view(-1) > 0  # a unit a place: itself, then two neighbours each, of which 3 of 8
    assert bool((hits[inside] == 3000).all())
    neighbours = (hits > 0) & ~inside
    assert int(neighbours.sum()) == 8
    assert (hits[neighbours] / 3000 - 3 / 8).abs().max() < 5 * math.sqrt(0.25 / 3000)


@pytest.mark.parametrize("kind", EXACT)
def test_a_mask_is_drawn_from_its_seed_alone(kind: MaskKind) -> None:
    def drawn(seed: int) -> Tensor:
        return draw_mask(40, 40, 200, kind, seeded(seed), plane=evenly(40, 40, 4))

    state = torch.random.get_rng_state()
    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (14, 7), (6, 13)])
@pytest.mark.parametrize("connections", [0, 1, 9, 20, 42])
def test_a_diagonal_mask_is_diagonals_and_part_of_one(rows: int, columns: int, connections: int) -> None:
    positions = draw_mask(rows, columns, connections, "diagonal", seeded(connections))
    row, column = positions // columns, positions % columns
    assert positions.numel() == positions.unique().numel() == connections
    on_each = torch.bincount((column - row) % columns, minlength=columns).sort(descending=True).values
    whole, rest = divmod(connections, rows)
    assert on_each.tolist() == [*[rows] * whole, *[rest] * (rest > 0), *[0] * (columns - whole - (rest > 0))]
    for degrees in (torch.bincount(row, minlength=rows), torch.bincount(column, minlength=columns)):
        assert rows != columns or int(degrees.max() - degrees.min()) <= 1


def test_a_diagonal_mask_is_uniform_over_diagonals_and_positions() -> None:
    """Chi-squared: which diagonals are whole, and which rows the last one has, at 5 standard deviations."""
    size, trials, generator = 7, 3000, seeded()
    hits, wholes = torch.zeros(size * size), torch.zeros(size)
    for _ in range(trials):
        positions = draw_mask(size, size, 2 * size + 3, "diagonal", generator)
        hits[positions] += 1
        on_each = torch.bincount((positions % size - positions // size) % size, minlength=size)
        wholes += (on_each == size).double()
    share = (2 * size + 3) / size**2
    assert (hits / trials - share).abs().max() < 5 * math.sqrt(share * (1 - share) / trials)
    expected = trials * 2 / size
    chi_squared = float(((wholes - expected) ** 2 / expected).sum())
    assert chi_squared < size - 1 + 5 * math.sqrt(2 * (size - 1))
