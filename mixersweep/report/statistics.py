"""The tests of a report: differences between models, and trends of each model's accuracy with its width.

For each pair of models: paired differences at equal targets, shape and seed, pooled over widths. With
``budget=parameters`` the best widths are compared instead, since at equal width an MLP's mean fan-in is 1; they are
chosen on validation, with other seeds than those tested. For each model and branch: the slope of accuracy on log width,
over the seeds that all its widths have. Seeds and test images are resampled together (``bootstrap``), what seeds do not
resample is a random effect of the cell (``cell_effect``), and Holm's correction counts every claim of a report: trends
and pairs of all its comparisons. At each width, Student's t over seeds is shown, but nothing is claimed.

Runs below a mean fan-in of 4 are shown but take part in no claim, and nothing is claimed where readouts differ
(``readouts``). Where heads are rank-limited, with fewer channels than classes, the difference is also tested without
them (``clean``) and claimed only if that test confirms it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixersweep.report import objections, sizes
from mixersweep.report.bootstrap import CellEffect, Estimate, Floats, draws_for, estimate
from mixersweep.report.caveats import CellStatistics, caveats, is_degenerate, is_rank_limited
from mixersweep.report.cell_effect import estimate_cell_effect, residual_contrasts
from mixersweep.report.claims import ALPHA, Claim, Pair, Trend, WidthTest
from mixersweep.report.exact import holm, sign_flip_p
from mixersweep.report.recipe import Cell, Comparison, Row, replicate_of
from mixersweep.report.table import predictions

Correct = NDArray[np.bool_]
Read = Callable[[Row], tuple[Correct, NDArray[np.int32]] | None]
Terms = list[tuple[Row, float]]
"""A contrast: runs and their weights."""


@dataclass(frozen=True)
class Statistics:
    """All tests of one comparison, with its caveats (``warnings``).

    ``unpaired`` are the pairs of models without runs at equal targets, and ``residual`` is the largest relative
    deviation from a target, with its run. ``claims`` is the number of claims that the whole report tests, ``draws``
    the number of bootstrap draws. ``cell_effect`` is None where it could not be estimated.
    """

    comparison: Comparison
    cells: list[CellStatistics]
    pairs: list[Pair]
    per_width: list[WidthTest]
    trends: list[Trend]
    unpaired: list[tuple[str, str]]
    images: int | None
    residual: tuple[float, Row]
    warnings: list[str]
    cell_effect: CellEffect | None
    claims: int
    draws: int


def statistics(
    comparisons: Sequence[Comparison], read: Read = predictions, draws: int | None = None
) -> list[Statistics]:
    """Compute all tests of a report's comparisons; the same runs give the same numbers.

    ``read`` returns which test images a run classified correctly, and their labels. ``draws`` is the number of
    bootstrap draws, by default what the number of claims needs.
    """
    drafts = [_Draft(comparison, read) for comparison in comparisons]
    claims = sum(draft.claims for draft in drafts)
    draws = draws_for(claims) if draws is None else draws
    return _corrected([draft.estimated(claims, draws) for draft in drafts])


def _corrected(all_statistics: Sequence[Statistics]) -> list[Statistics]:
    """Add Holm's correction over the tested claims of all comparisons."""
    tested = [claim for one in all_statistics for claim in (*one.pairs, *one.trends) if claim.is_tested]
    corrected = dict(zip(map(id, tested), holm([claim.effect.p or 0.0 for claim in tested]), strict=True))

    def with_p(claims: Sequence[Any]) -> list[Any]:
        return [dataclasses.replace(claim, p_holm=corrected.get(id(claim))) for claim in claims]

    return [dataclasses.replace(one, pairs=with_p(one.pairs), trends=with_p(one.trends)) for one in all_statistics]


class _Draft:
    """The tests of one comparison before they are computed: the contrasts, and the reasons that bar a claim."""

    def __init__(self, comparison: Comparison, read: Read) -> None:
        self.comparison = comparison
        self.rows = comparison.rows
        self.cells = {cell: runs for cell, runs in comparison.cells.items() if not is_degenerate(runs[0])}
        self.correct, self.warnings = _correct(self.rows, read)
        self._index = {id(row): number for number, row in enumerate(self.rows)}
        self._cell_of = np.array([number for number, runs in enumerate(comparison.cells.values()) for _ in runs])
        self._seeds = [replicate_of(row) for row in self.rows]
        self._accuracy = np.array([row["test_accuracy"] for row in self.rows], dtype=np.float64)
        self.unpaired: list[tuple[str, str]] = []
        self._pairs: list[tuple[Pair, Terms, Terms | None]] = []
        for first, second in itertools.combinations(comparison.variants, 2):
            pair = _pair(comparison, self.cells, first, second)
            if pair is None:
                self.unpaired.append((first, second))
            else:
                self._pairs.append(pair)
        drawn = (_trend(comparison, *line, self.cells) for line in _lines(self.cells))
        self._trends = [trend for trend in drawn if trend is not None]
        joined = _joined_cells(self.cells, comparison.variants) if comparison.budget == "connections" else ()
        self._joined = list(joined)

    @property
    def claims(self) -> int:
        """The number of claims that are tested, which the correction counts."""
        return sum(not claim.barred and self._has_interval(terms) for claim, terms, _ in (*self._pairs, *self._trends))

    def estimated(self, claims: int, draws: int) -> Statistics:
        """Compute all tests; ``claims`` are those of the whole report. ``p_holm`` is added by ``_corrected``."""
        cell_effect = self._cell_effect()
        tests = [*self._pairs, *self._trends]
        means = [[(run, 1 / len(runs)) for run in runs] for runs in self.comparison.cells.values()]
        at_widths = [_difference([(self.cells[one], self.cells[other], s)]) for one, other, s in self._joined]
        tested = [(terms, cell_effect) for _, *both in tests for terms in both]
        found = self._estimates([*tested, *((terms, None) for terms in (*means, *at_widths))], claims, draws)
        filled = [self._filled(claim, next(found), next(found)) for claim, *_ in tests]
        cells = [
            CellStatistics(cell, runs, next(found), _spread(runs), cell in self.cells, is_rank_limited(runs[0]))
            for cell, runs in self.comparison.cells.items()
        ]
        return Statistics(
            self.comparison,
            cells,
            pairs=[claim for claim in filled if isinstance(claim, Pair)],
            per_width=[_width_test(one, other, self.cells, s, next(found)) for one, other, s in self._joined],
            trends=[claim for claim in filled if isinstance(claim, Trend)],
            unpaired=self.unpaired,
            images=None if self.correct is None else self.correct.shape[1],
            residual=max(((sizes.residual(row), row) for row in self.rows), key=lambda pair: pair[0]),
            warnings=[*caveats(self.comparison, cells), *self.warnings],
            cell_effect=cell_effect,
            claims=claims,
            draws=draws,
        )

    def _filled(self, claim: Claim, whole: Estimate, clean: Estimate | None) -> Claim:
        """Add its estimates to a claim, and the objections to it."""
        rates = self.comparison.rates
        if isinstance(claim, Pair):
            pair = dataclasses.replace(claim, difference=whole, clean=clean)
            return dataclasses.replace(pair, against=pair.barred or objections.objections_to_pair(pair, rates))
        assert isinstance(claim, Trend)
        trend = dataclasses.replace(claim, slope=whole)
        return dataclasses.replace(trend, against=trend.barred or objections.objections_to_trend(trend, rates))

    def _cell_effect(self) -> CellEffect | None:
        """Estimate the cell effect from all trends together.

        Cells with rank-limited heads, which bend the curve, are left out of a trend where three others remain.
        """
        found = []
        for trend, terms, _ in self._trends:
            clean = [cell for cell in trend.cells if not is_rank_limited(self.cells[cell][0])]
            cells = clean if len(clean) > 2 else trend.cells
            used = {id(run) for run, _ in terms}
            runs = [[run for run in self.cells[cell] if id(run) in used] for cell in cells]
            for contrast in residual_contrasts([own[0]["width"] for own in runs]):
                terms_of = zip(contrast, runs, strict=True)
                found.append(self._weights([(run, w / len(own)) for w, own in terms_of for run in own]))
        rows = np.array(found).reshape(-1, len(self.rows))
        return estimate_cell_effect(rows, self._accuracy, self._cell_of, self._seeds, self.correct)

    def _estimates(
        self, contrasts: Sequence[tuple[Terms | None, CellEffect | None]], claims: int, draws: int
    ) -> Iterator[Any]:
        """The estimates of contrasts, in their order; None where the contrast is None."""
        present = [(terms, effect) for terms, effect in contrasts if terms is not None]
        found: list[Estimate] = []
        if present:
            found = estimate(
                np.stack([self._weights(terms) for terms, _ in present]),
                self._accuracy,
                self._cell_of,
                self._seeds,
                self.correct,
                cell_effects=[effect for _, effect in present],
                claims=max(1, claims),
                draws=draws,
            )
        inner = iter(found)
        return iter([None if terms is None else next(inner) for terms, _ in contrasts])

    def _weights(self, terms: Terms) -> Floats:
        weights = np.zeros(len(self.rows))
        for run, weight in terms:
            weights[self._index[id(run)]] += weight
        return weights

    def _has_interval(self, terms: Terms) -> bool:
        """Whether every cell of a contrast has several runs."""
        used = np.flatnonzero(self._weights(terms))
        return int(np.bincount(self._cell_of[used])[np.unique(self._cell_of[used])].min()) > 1


def _pair(
    comparison: Comparison, cells: Mapping[Cell, list[Row]], first: str, second: str
) -> tuple[Pair, Terms, Terms | None] | None:
    """The primary test of two models, its contrast, and that without rank-limited heads, if there are any.

    None where the two have no runs at equal targets.
    """
    at_best: tuple[int, int] | None = None
    chose: list[str] = []
    if comparison.budget == "parameters":
        best = _at_best(comparison, cells, first, second)
        if best is None:
            return None
        joined, chose = best
        (one, other, _) = joined[0]
        at_best = (one[1], other[1])
    else:
        joined = list(_joined_cells(cells, [first, second]))
    if not joined:
        return None
    several = [join for join in joined if len(join[2]) > 1]
    left_out = [f"width {join[0][1]} (one seed)" for join in joined if len(join[2]) == 1] if several else []
    joined = several or joined
    clean = [join for join in joined if not any(is_rank_limited(cells[cell][0]) for cell in join[:2])]
    compared = [(one, other) for one, other, _ in joined]
    unlike = sizes.largest_differences([(cells[one][0], cells[other][0]) for one, other in compared])
    if at_best is not None:
        unlike.pop("width", None)
    pair = Pair(
        first=first,
        second=second,
        joined=compared,
        pairs=sum(len(seeds) for *_, seeds in joined),
        sizes=unlike,
        at_best=at_best,
        chosen_on=chose,
        left_out=left_out,
        barred=objections.reasons_to_bar_pair(compared, comparison),
    )
    parts = [(cells[one], cells[other], seeds) for one, other, seeds in clean]
    return (
        pair,
        _difference([(cells[one], cells[other], seeds) for one, other, seeds in joined]),
        _difference(parts) if clean and len(clean) < len(joined) else None,
    )


Joined = tuple[Cell, Cell, list[str]]
"""Cells of two models, and the seeds that are compared."""


def _joined_cells(cells: Mapping[Cell, list[Row]], variants: Iterable[str]) -> Iterable[Joined]:
    """Cells of two models with equal target width and shape (an MLP has no shape), and the seeds they share."""
    for first, second in itertools.combinations(variants, 2):
        for one in (cell for cell in cells if cell[0] == first):
            for other in (cell for cell in cells if cell[0] == second):
                same_shape = one[2] == other[2] or None in (one[2], other[2])
                if one[1] == other[1] and same_shape and (seeds := _common([cells[one], cells[other]])):
                    yield one, other, seeds


def _at_best(
    comparison: Comparison, cells: Mapping[Cell, list[Row]], first: str, second: str
) -> tuple[list[Joined], list[str]] | None:
    """The cells at which two models are best on validation, with the seeds to test, and the seeds that chose them.

    The choice is made by the search seeds where all cells have them, else by the first half of the reported seeds, and
    the other half is tested. Seeds that choose are not tested, since they flatter the best of several. The halves are
    not swapped for a second test either: the errors of the two tests would be correlated, and more than 5% of claims
    would be false.
    """
    own = [[cell for cell in cells if cell[0] == variant] for variant in (first, second)]
    own = [[cell for cell in part if len(cells[cell]) > 1] or part for part in own]
    if not all(own):
        return None
    every = [cell for part in own for cell in part]
    seeds = _common([cells[cell] for cell in every])
    rates = comparison.rates
    runs: dict[Cell, list[Row]] = {cell: list(cells[cell]) for cell in every}
    for row in comparison.searched:
        cell = comparison.cell_of(row)
        if cell in runs and row["optim.lr"] == rates[cell].compared:
            runs[cell].append(row)
    chose = [s for s in comparison.search_seeds if all(s in map(replicate_of, runs[cell]) for cell in every)]
    if len(every) == 2:
        chose, tested = [], seeds
    elif chose:
        tested = seeds
    else:
        chose, tested = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    judged = {cell: [row for row in runs[cell] if not chose or replicate_of(row) in chose] for cell in every}
    best = [max(part, key=lambda cell: _validation(judged[cell]), default=None) for part in own]
    if best[0] is None or best[1] is None or not tested:
        return None
    return [(best[0], best[1], tested)], chose


def _validation(runs: Sequence[Row]) -> float:
    """The mean validation accuracy; -1, below all others, where it is missing."""
    accuracies = [row["validation_accuracy"] for row in runs]
    return float(np.mean(accuracies)) if accuracies and None not in accuracies else -1.0


def _common(groups: Sequence[Sequence[Row]]) -> list[str]:
    """The seeds that all groups of runs have, in the order of the first."""
    seeds = [{replicate_of(row) for row in runs} for runs in groups]
    return [seed for row in groups[0] if all((seed := replicate_of(row)) in own for own in seeds)]


def _difference(joined: Sequence[tuple[list[Row], list[Row], list[str]]]) -> Terms:
    """The contrast of the mean paired difference: equal weight for each joined pair of cells, and for its seeds."""
    terms = []
    for first, second, seeds in joined:
        weight, both = 1 / (len(joined) * len(seeds)), set(seeds)
        terms += [(row, weight) for row in first if replicate_of(row) in both]
        terms += [(row, -weight) for row in second if replicate_of(row) in both]
    return terms


def _width_test(
    one: Cell, other: Cell, cells: Mapping[Cell, list[Row]], seeds: Sequence[str], found: Estimate
) -> WidthTest:
    from scipy.stats import t as student

    first = {replicate_of(row): row["test_accuracy"] for row in cells[one]}
    second = {replicate_of(row): row["test_accuracy"] for row in cells[other]}
    d = np.array([first[seed] - second[seed] for seed in seeds])
    n, mean = len(d), float(d.mean())
    interval = p_t = p_sign = None
    if n > 1:
        error = float(d.std(ddof=1)) / n**0.5
        half = float(student.ppf(1 - ALPHA / 2, n - 1)) * error
        interval = (mean - half, mean + half)
        p_t = float(2 * student.sf(abs(mean) / error, n - 1)) if error else None
        flipped, smallest = sign_flip_p(list(d))
        p_sign = flipped if smallest <= ALPHA else None
    return WidthTest(
        one[0], other[0], one[1], one[2] or other[2], n, mean, interval, found.over_seeds_and_images, p_t, p_sign
    )


def _lines(cells: Mapping[Cell, list[Row]]) -> Iterable[tuple[str, str | None, list[Cell]]]:
    """The lines of trends: (variant, branch, its cells by width); square Mixers belong to both branches."""
    for variant in dict.fromkeys(cell[0] for cell in cells):
        own = sorted((cell for cell in cells if cell[0] == variant), key=lambda cell: cells[cell][0]["width"])
        for branch in ("tall", "wide"):
            if any(cell[2] == branch for cell in own):
                yield variant, branch, [cell for cell in own if cell[2] in (branch, "square")]
        plain = [cell for cell in own if cell[2] is None]
        if plain:
            yield variant, None, plain


def _trend(
    comparison: Comparison, variant: str, branch: str | None, line: list[Cell], cells: Mapping[Cell, list[Row]]
) -> tuple[Trend, Terms, None] | None:
    """A trend with its contrast; None where there are not two widths.

    The third value is for symmetry with ``_pair``: trends are not tested without rank-limited heads.
    """
    several = [cell for cell in line if len(cells[cell]) > 1]
    line = several if len(several) >= 2 else line
    widths = [cells[cell][0]["width"] for cell in line]
    if len(set(widths)) < 2:
        return None
    shared = set(_common([cells[cell] for cell in line]))
    all_seeds = {replicate_of(row) for cell in line for row in cells[cell]}
    balanced = len(shared) > 1 or len(several) < 2
    used = {cell: [r for r in cells[cell] if not balanced or replicate_of(r) in (shared or all_seeds)] for cell in line}
    trend = Trend(
        variant=variant,
        branch=branch,
        cells=line,
        widths=widths,
        sizes=sizes.differences_along([cells[cell][0] for cell in line]),
        doublings=float(np.log2(widths[-1] / widths[0])),
        seeds_left_out=len(all_seeds - shared) if len(shared) > 1 else 0,
        barred=objections.reasons_to_bar_trend(line, comparison, balanced),
    )
    return trend, _slope(line, used), None


def _slope(line: Sequence[Cell], used: Mapping[Cell, list[Row]]) -> Terms:
    """The contrast of the least-squares slope on log2 of the width through the cells' means."""
    x = np.log2([used[cell][0]["width"] for cell in line])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return [(row, float(w) / len(used[cell])) for cell, w in zip(line, weights, strict=True) for row in used[cell]]


def _correct(rows: Sequence[Row], read: Read) -> tuple[Correct | None, list[str]]:
    """Which test images each run classified correctly (R, N), or None and the caveat that says why not."""
    correct, labels = np.zeros((0, 0), dtype=np.bool_), None
    for number, row in enumerate(rows):
        stored = read(row)
        if stored is None:
            reason = f"{row['name']} has no readable predictions.npz, so intervals are over seeds alone"
            return None, [reason]
        if labels is not None and (len(labels) != len(stored[1]) or not np.array_equal(labels, stored[1])):
            return None, [
                f"{row['name']} was tested on other images than {rows[0]['name']}: intervals are over seeds alone"
            ]
        if labels is None:
            labels = stored[1]
            correct = np.empty((len(rows), len(labels)), dtype=np.bool_)
        correct[number] = stored[0]
    return (correct, []) if correct.shape[1] > 1 else (None, [])


def _spread(runs: Sequence[Row]) -> float | None:
    return float(np.std([row["test_accuracy"] for row in runs], ddof=1)) if len(runs) > 1 else None
