"""The tests of one comparison: models against each other, and each model's accuracy against its width.

Primary, for each pair of models: paired differences at equal targets, shape and seed, pooled over widths, with seeds
and test images resampled together (``bootstrap``) and Holm's correction over the pairs. With ``budget=parameters`` the
best widths (chosen on validation) are compared instead, since at equal width an MLP's fan-in is 1. Secondary, for each
width: Student's t over seeds, and the exact sign-flip test with the smallest p that so few seeds allow.

Runs below a mean fan-in of 4 are shown and take part in no claim. Where Mixers have fewer channels than classes, their
head is rank-limited: every claim is tested again without them (``clean``), and made only if that bears it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.report import sizes
from mixersweep.report.bootstrap import Estimate, Interval, estimate
from mixersweep.report.caveats import CellStatistics, caveats, degenerate, head_channels, rank_limited
from mixersweep.report.exact import holm, sign_flip_p
from mixersweep.report.recipe import Cell, Comparison, Row, replicate_of
from mixersweep.report.table import predictions

ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """The primary test of two models: ``difference`` is the first's accuracy minus the second's.

    ``p_holm`` is corrected over the pairs of the comparison; None where no p can be had (one seed). ``is_of_heads``:
    no pair of runs is free of rank-limited heads, and the two models' are not equally so.
    """

    first: str
    second: str
    widths: list[tuple[int, str | None]]
    pairs: int
    difference: Estimate
    clean: Estimate | None
    residual: float
    at_best: tuple[int, int] | None = None
    p_holm: float | None = None
    left_out: list[str] = field(default_factory=list)
    is_of_heads: bool = False

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference."""
        return self.p_holm is not None and self.p_holm <= ALPHA

    @property
    def decided(self) -> bool:
        """Whether it does, and the runs without rank-limited heads bear it out."""
        return self.shown and not self.is_of_heads and _bears_out(self.difference, self.clean)


@dataclass(frozen=True)
class WidthTest:
    """The secondary tests of two models at one width and shape, over seeds alone."""

    first: str
    second: str
    width: int
    shape: str | None
    seeds: int
    difference: float
    interval: Interval | None
    over_seeds_and_images: Interval | None
    p_t: float | None
    p_sign: float | None
    smallest_p: float | None

    @property
    def verdict(self) -> str:
        """In words, by the exact test."""
        if self.smallest_p is None or self.smallest_p > ALPHA:
            return f"n={self.seeds} cannot decide"
        if self.p_sign is not None and self.p_sign <= ALPHA:
            return f"{self.first if self.difference > 0 else self.second} is better"
        return "no difference shown"


@dataclass(frozen=True)
class Trend:
    """The slope of accuracy on log2 of the width, of one model on one branch, per doubling of the width."""

    variant: str
    branch: str | None
    widths: list[int]
    runs: int
    slope: Estimate
    clean: Estimate | None
    clean_widths: list[int]

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        interval = self.slope.interval
        return interval is not None and not interval[0] <= 0 <= interval[1]

    @property
    def decided(self) -> bool:
        """Whether it does, and the widths without rank-limited heads, if there are others, bear it out."""
        is_of_heads = self.clean is None and len(self.clean_widths) < len(self.widths)
        return self.shown and not is_of_heads and _bears_out(self.slope, self.clean)

    @property
    def name(self) -> str:
        """The model, and the branch where there are two."""
        return f"{self.variant} ({self.branch})" if self.branch else self.variant


@dataclass(frozen=True)
class Statistics:
    """Everything that is claimed of one comparison, with what stands in the way of claiming more."""

    comparison: Comparison
    cells: list[CellStatistics]
    pairs: list[Pair]
    per_width: list[WidthTest]
    trends: list[Trend]
    unpaired: list[tuple[str, str]]
    images: int | None
    residual: tuple[float, Row]
    warnings: list[str]


def statistics(comparison: Comparison) -> Statistics:
    """All tests of a comparison; the same runs give the same numbers."""
    rows = comparison.rows
    place = {id(row): number for number, row in enumerate(rows)}
    correct, warnings = _correct(rows)
    wanted = _Wanted(len(rows), place)
    claims = {cell: runs for cell, runs in comparison.cells.items() if not degenerate(runs[0])}

    for runs in comparison.cells.values():
        wanted.add([(run, 1 / len(runs)) for run in runs])
    pairs, unpaired = [], []
    for first, second in itertools.combinations(comparison.variants, 2):
        pair = _pair(comparison, claims, first, second, wanted)
        if pair is None:
            unpaired.append((first, second))
        else:
            pairs.append(pair)
    joined = list(_joined_cells(claims, comparison.variants)) if comparison.budget == "connections" else []
    for one, other, seeds in joined:
        wanted.add(_difference([(claims[one], claims[other], seeds)]))
    trends = [trend for line in _lines(claims) if (trend := _trend(*line, claims, wanted)) is not None]

    found = wanted.estimates(rows, comparison.cells, correct)
    cells = [
        CellStatistics(cell, runs, next(found), _spread(runs), cell in claims, rank_limited(runs[0]))
        for cell, runs in comparison.cells.items()
    ]
    pairs = _holm([_filled(pair, "difference", found) for pair in pairs])
    per_width = [_width_test(one, other, claims, seeds, next(found)) for one, other, seeds in joined]
    trends = [_filled(trend, "slope", found) for trend in trends]
    residual = max(((_residual(row), row) for row in rows), key=lambda pair: pair[0])
    images = None if correct is None else correct.shape[1]
    warnings = [*caveats(comparison, cells), *warnings]
    return Statistics(comparison, cells, pairs, per_width, trends, unpaired, images, residual, warnings)


class _Wanted:
    """The contrasts that are asked for, in order; None stands for one that there is not."""

    def __init__(self, runs: int, place: Mapping[int, int]) -> None:
        self._runs, self._place = runs, place
        self._rows: list[NDArray[np.float64] | None] = []

    def add(self, terms: Sequence[tuple[Row, float]] | None) -> None:
        if terms is None:
            self._rows.append(None)
            return
        weights = np.zeros(self._runs)
        for run, weight in terms:
            weights[self._place[id(run)]] += weight
        self._rows.append(weights)

    def estimates(
        self, rows: Sequence[Row], cells: Mapping[Cell, Sequence[Row]], correct: NDArray[np.bool_] | None
    ) -> Any:
        """An iterator over the estimates, in the order in which they were added."""
        labels = [number for number, runs in enumerate(cells.values()) for _ in runs]
        accuracy = [row["test_accuracy"] for row in rows]
        seeds = [replicate_of(row) for row in rows]
        asked = [weights for weights in self._rows if weights is not None]
        found: list[Estimate] = []
        for start in range(0, len(asked), 200):
            found += estimate(np.stack(asked[start : start + 200]), accuracy, labels, seeds, correct)
        inner = iter(found)
        return iter([None if weights is None else next(inner) for weights in self._rows])


def _holm(pairs: list[Pair]) -> list[Pair]:
    tested = [pair for pair in pairs if pair.difference.p is not None]
    corrected = dict(zip(map(id, tested), holm([pair.difference.p or 0.0 for pair in tested]), strict=True))
    return [_replaced(pair, p_holm=corrected.get(id(pair))) for pair in pairs]


def _filled(part: Any, name: str, found: Any) -> Any:
    """A test with its estimate, and that without the rank-limited runs."""
    return _replaced(part, **{name: next(found), "clean": next(found)})


def _replaced(part: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(part, **changes)


_TO_COME = Estimate(0.0, 0, 0, None)


def _bears_out(whole: Estimate, clean: Estimate | None) -> bool:
    """Whether the interval without rank-limited heads lies on the same side of 0; of one seed, the value."""
    if clean is None:
        return True
    low, high = clean.interval or (clean.value, clean.value)
    return low > 0 if whole.value > 0 else high < 0


def _pair(
    comparison: Comparison, claims: Mapping[Cell, list[Row]], first: str, second: str, wanted: _Wanted
) -> Pair | None:
    """The primary test of two models, with its contrasts added to ``wanted``; None where nothing joins."""
    at_best = None
    if comparison.budget == "parameters":
        best = [_best_cell(claims, variant) for variant in (first, second)]
        if best[0] is None or best[1] is None:
            return None
        seeds = _common(claims[best[0]], claims[best[1]])
        joined = [(best[0], best[1], seeds)] if seeds else []
        at_best = (best[0][1], best[1][1])
    else:
        joined = list(_joined_cells(claims, [first, second]))
    if not joined:
        return None
    several = [join for join in joined if len(join[2]) > 1]
    left_out = [f"width {join[0][1]} (one seed)" for join in joined if len(join[2]) == 1] if several else []
    joined = several or joined
    clean = [join for join in joined if not any(rank_limited(claims[cell][0]) for cell in join[:2])]
    unequal = any(len({head_channels(claims[cell][0]) for cell in join[:2]}) > 1 for join in joined)
    wanted.add(_difference([(claims[one], claims[other], seeds) for one, other, seeds in joined]))
    parts = [(claims[one], claims[other], seeds) for one, other, seeds in clean]
    wanted.add(_difference(parts) if clean and len(clean) < len(joined) else None)
    residual = max(_apart(claims[one][0], claims[other][0]) for one, other, _ in joined) if at_best is None else 0.0
    return Pair(
        first,
        second,
        [(one[1], one[2] or other[2]) for one, other, _ in joined],
        sum(len(seeds) for *_, seeds in joined),
        _TO_COME,
        None,
        residual,
        at_best,
        left_out=left_out,
        is_of_heads=not clean and unequal,
    )


def _joined_cells(claims: Mapping[Cell, list[Row]], variants: Iterable[str]) -> Iterable[tuple[Cell, Cell, list[str]]]:
    """Cells of two models with equal target width and shape (an MLP has no shape), and the seeds that both have."""
    for first, second in itertools.combinations(variants, 2):
        for one in (cell for cell in claims if cell[0] == first):
            for other in (cell for cell in claims if cell[0] == second):
                same_shape = one[2] == other[2] or None in (one[2], other[2])
                seeds = _common(claims[one], claims[other])
                if one[1] == other[1] and same_shape and seeds:
                    yield one, other, seeds


def _common(one: Sequence[Row], other: Sequence[Row]) -> list[str]:
    there = {replicate_of(row) for row in other}
    return [seed for row in one if (seed := replicate_of(row)) in there]


def _difference(joined: Sequence[tuple[list[Row], list[Row], list[str]]]) -> list[tuple[Row, float]]:
    terms = []
    for first, second, seeds in joined:
        weight, both = 1 / (len(joined) * len(seeds)), set(seeds)
        terms += [(row, weight) for row in first if replicate_of(row) in both]
        terms += [(row, -weight) for row in second if replicate_of(row) in both]
    return terms


def _best_cell(claims: Mapping[Cell, list[Row]], variant: str) -> Cell | None:
    """The width and shape with the best mean validation accuracy."""
    validated = {
        cell: float(np.mean([row["validation_accuracy"] for row in runs]))
        for cell, runs in claims.items()
        if cell[0] == variant and all(row["validation_accuracy"] is not None for row in runs)
    }
    return max(validated, key=lambda cell: validated[cell], default=None)


def _width_test(
    one: Cell, other: Cell, claims: Mapping[Cell, list[Row]], seeds: Sequence[str], found: Estimate
) -> WidthTest:
    from scipy.stats import t as student

    first = {replicate_of(row): row["test_accuracy"] for row in claims[one]}
    second = {replicate_of(row): row["test_accuracy"] for row in claims[other]}
    d = np.array([first[seed] - second[seed] for seed in seeds])
    n, mean = len(d), float(d.mean())
    interval = p_t = p_sign = smallest = None
    if n > 1:
        error = float(d.std(ddof=1)) / n**0.5
        half = float(student.ppf(1 - ALPHA / 2, n - 1)) * error
        interval = (mean - half, mean + half)
        p_t = float(2 * student.sf(abs(mean) / error, n - 1)) if error else None
        p_sign, smallest = sign_flip_p(list(d))
    shape = one[2] or other[2]
    return WidthTest(
        one[0], other[0], one[1], shape, n, mean, interval, found.over_seeds_and_images, p_t, p_sign, smallest
    )


def _lines(claims: Mapping[Cell, list[Row]]) -> Iterable[tuple[str, str | None, list[Cell]]]:
    """(variant, branch, its cells by width); a square Mixer ends both branches."""
    for variant in dict.fromkeys(cell[0] for cell in claims):
        own = sorted((cell for cell in claims if cell[0] == variant), key=lambda cell: claims[cell][0]["width"])
        for branch in ("tall", "wide"):
            if any(cell[2] == branch for cell in own):
                yield variant, branch, [cell for cell in own if cell[2] in (branch, "square")]
        plain = [cell for cell in own if cell[2] is None]
        if plain:
            yield variant, None, plain


def _trend(
    variant: str, branch: str | None, cells: list[Cell], claims: Mapping[Cell, list[Row]], wanted: _Wanted
) -> Trend | None:
    several = [cell for cell in cells if len(claims[cell]) > 1]
    if len(several) >= 2:
        cells = several
    if len({claims[cell][0]["width"] for cell in cells}) < 2:
        return None
    clean = [cell for cell in cells if not rank_limited(claims[cell][0])]
    enough = len(clean) < len(cells) and len({claims[cell][0]["width"] for cell in clean}) >= 2
    wanted.add(_slope(cells, claims))
    wanted.add(_slope(clean, claims) if enough else None)
    runs = sum(len(claims[cell]) for cell in cells)
    widths = [claims[cell][0]["width"] for cell in cells]
    clean_widths = [claims[cell][0]["width"] for cell in clean]
    return Trend(variant, branch, widths, runs, _TO_COME, None, clean_widths)


def _slope(cells: Sequence[Cell], claims: Mapping[Cell, list[Row]]) -> list[tuple[Row, float]]:
    """Least squares through the cells' means: the slope is a weighted sum of them."""
    x = np.log2([claims[cell][0]["width"] for cell in cells])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return [(row, w / len(claims[cell])) for cell, w in zip(cells, weights, strict=True) for row in claims[cell]]


def _correct(rows: Sequence[Row]) -> tuple[NDArray[np.bool_] | None, list[str]]:
    """Which test images each run got right (R, N), or None and the reason."""
    kept, labels = [], None
    for row in rows:
        stored = predictions(row)
        if stored is None:
            reason = f"{row['name']} has no readable predictions.npz, so no interval takes in the test images"
            return None, [reason]
        if labels is not None and (len(labels) != len(stored[1]) or not np.array_equal(labels, stored[1])):
            return None, [
                f"{row['name']} was tested on other images than {rows[0]['name']}: intervals are over seeds alone"
            ]
        labels = stored[1] if labels is None else labels
        kept.append(stored[0])
    return (np.stack(kept), []) if kept and len(kept[0]) > 1 else (None, [])


def _spread(runs: Sequence[Row]) -> float | None:
    return float(np.std([row["test_accuracy"] for row in runs], ddof=1)) if len(runs) > 1 else None


def _residual(row: Row) -> float:
    """The larger relative distance of width and budget from their targets."""
    return sizes.residual(row)


def _apart(one: Row, other: Row) -> float:
    """The largest relative difference of two networks in any size that should be alike (``sizes``)."""
    return max(sizes.apart(one, other).values())
