"""How often a report claims what is not so, covers what is and finds what is there, in sweeps of known truth."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mixersweep.report.statistics import Statistics
from tests.report.simulated import (
    Row,
    Sweep,
    Truth,
    at_least,
    at_most,
    fill,
    readme_shape,
    report_of,
    simulated,
    true_of,
    two_models,
    widths_of,
)

pytestmark = pytest.mark.slow
WIDTHS = (426, 520, 572, 644)
UNSTEADY = Truth(run=0.012, validation=0.002)
"""Runs that differ by what they are, more than by the images that they happen to get right."""


def claimed(found: Statistics) -> bool:
    """Whether the report claims anything."""
    return any(claim.is_decided for claim in (*found.pairs, *found.trends))


@pytest.mark.parametrize(
    ("seeds", "cell"),
    [(5, 0.0), (5, 0.005), (3, 0.0), (3, 0.005)],
    ids=["five seeds", "five, cell effects beyond a run's spread", "three seeds", "three, cell effects"],
)
def test_where_nothing_is_a_report_of_the_readmes_shape_rarely_claims_anything(
    tmp_path: Path, seeds: int, cell: float
) -> None:
    """Seven trends and six pairs, all without effect: a claim in at most 5% of reports, whatever sets cells apart."""
    sweeps = 120
    made = Sweep(tmp_path, readme_shape(), seeds).compared()
    false, covered, intervals = 0, 0, 0
    for found, _ in simulated(made, Truth(cell=cell), sweeps, rng=seeds):
        assert (len(found.trends), len(found.pairs), found.claims) == (7, 6, 13)
        false += claimed(found)
        for claim in (*found.trends, *found.pairs):
            low, high = claim.effect.interval
            covered += low <= 0 <= high
            intervals += 1
    assert false <= at_most(0.05, sweeps)
    assert covered / intervals > 0.93


@pytest.mark.parametrize("cell", [0.0, 0.004])
def test_intervals_cover_what_is_true_and_what_would_show_does(tmp_path: Path, cell: float) -> None:
    """A straight rise of each model and a difference between them, as large as the report says that would show."""
    sweeps = 150
    made = Sweep(tmp_path, two_models((426, 520, 572, 608, 644)), 5).compared()
    first = [found for found, _ in simulated(made, Truth(cell=cell), 40, rng=5)]
    (widths,) = {tuple(trend.widths) for found in first for trend in found.trends if trend.variant == "sw_mlp"}
    rise = float(np.median([trend.rise.detectable for found in first for trend in found.trends]))
    apart = float(np.median([found.pairs[0].difference.detectable for found in first]))
    middle, doublings = np.log2(widths).mean(), np.log2(widths[-1] / widths[0])

    def level(row: Row) -> float:
        above = apart / 2 if row["model"] == "s_mixer" else -apart / 2
        return 0.85 + above + rise * (np.log2(row["width"]) - middle) / doublings

    covered = {"trend": 0, "pair": 0}
    shown = {"trend": 0, "pair": 0}
    at = widths_of(made[0])
    for found, levels in simulated(made, Truth(level, cell=cell), sweeps, rng=6):
        for kind, claims in (("trend", found.trends), ("pair", found.pairs)):
            for claim in claims:
                low, high = claim.effect.interval
                covered[kind] += low <= true_of(claim, levels, at) <= high
                shown[kind] += claim.is_decided and claim.effect.value > 0
    # trends of one sweep share seeds and images: their coverage is as uncertain as that of half as many
    for kind, tested in (("trend", 2), ("pair", 1)):
        assert covered[kind] / tested >= at_least(0.94, sweeps)
        assert shown[kind] / tested >= at_least(0.75, sweeps)


def chosen_of_three(sweep: Sweep, both: bool) -> Callable[[np.random.Generator], tuple[list[Row], list[Row]]]:
    """Equal models, S-Mixers (or both) at three rates on the reported seeds, of which validation chooses."""

    def drawn(generator: np.random.Generator) -> tuple[list[Row], list[Row]]:
        several = [row for row in sweep.first if both or row["model"] == "s_mixer"]
        cells = [[sweep.run(row, s) for s in range(5)] for row in sweep.first]
        cells += [[sweep.run(row, s, rate) for s in range(5)] for row in several for rate in (0.0316, 0.316)]
        fill(cells, UNSTEADY, generator)
        return [row for own in cells for row in own], []

    return drawn


def survivors(sweep: Sweep, model: str | None) -> Callable[[np.random.Generator], tuple[list[Row], list[Row]]]:
    """Equal models; the worst two in five runs of one diverge, or of the widest two of each."""

    def drawn(generator: np.random.Generator) -> tuple[list[Row], list[Row]]:
        cells = [[dict(row) for row in own] for own in sweep.rows]
        fill(cells, UNSTEADY, generator)
        kept, lost = list(sweep.search), []
        for own in cells:
            unstable = own[0]["width_target"] > 550 if model is None else own[0]["model"] == model
            gone = sorted(own, key=lambda row: row["level"])[: 2 if unstable else 0]
            lost += [sweep.run(row, row["seed"], 0.1, None, "diverged") for row in gone]
            kept += [row for row in own if all(row is not other for other in gone)]
        return kept, lost

    return drawn


def seeds_apart(sweep: Sweep) -> Callable[[np.random.Generator], tuple[list[Row], list[Row]]]:
    """Seeds that differ by more than anything else, and widths that have different ones."""

    def drawn(generator: np.random.Generator) -> tuple[list[Row], list[Row]]:
        cells = [[dict(row) for row in own] for own in sweep.rows]
        fill(cells, Truth(seed=0.02), generator)
        by_seed = sorted(
            range(5), key=lambda seed: sum(row["level"] for own in cells for row in own if row["seed"] == seed)
        )
        kept = list(sweep.search)
        for own in cells:
            left_out = by_seed[-2:] if own[0]["width_target"] < 550 else by_seed[:1]
            kept += [row for row in own if row["seed"] not in left_out]
        return kept, []

    return drawn


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("sweep"), two_models(WIDTHS), 5)


def reports(
    drawn: Callable[[np.random.Generator], tuple[list[Row], list[Row]]], sweeps: int, rng: int
) -> Iterator[Statistics]:
    for number in range(sweeps):
        yield report_of(*drawn(np.random.default_rng([rng, number])), draws=1000)


@pytest.mark.parametrize("kind", ["chosen by the reported seeds", "one model diverges", "wide ones diverge"])
def test_what_flatters_one_side_is_claimed_of_nothing(sweep: Sweep, kind: str) -> None:
    """The estimate is off, by far more than chance, and yet no more is claimed than where it is right."""
    drawn = {
        "chosen by the reported seeds": chosen_of_three(sweep, both=False),
        "one model diverges": survivors(sweep, "s_mixer"),
        "wide ones diverge": survivors(sweep, None),
    }[kind]
    sweeps, false, estimates = 120, 0, []
    for found in reports(drawn, sweeps, rng=11):
        false += claimed(found)
        of_width = float(np.mean([trend.slope.value for trend in found.trends]))
        estimates.append(of_width if kind == "wide ones diverge" else found.pairs[0].difference.value)
    assert np.mean(estimates) > 4 * np.std(estimates) / sweeps**0.5
    assert false <= at_most(0.05, sweeps)


@pytest.mark.parametrize("kind", ["chosen by the reported seeds of both", "seeds apart"])
def test_what_is_equal_for_both_misleads_nobody(sweep: Sweep, kind: str) -> None:
    drawn = chosen_of_three(sweep, both=True) if "both" in kind else seeds_apart(sweep)
    sweeps = 120
    assert sum(claimed(found) for found in reports(drawn, sweeps, rng=12)) <= at_most(0.05, sweeps)


def test_the_best_of_many_widths_is_not_flattered(tmp_path: Path) -> None:
    """Nine widths of one model against one of another, all equal: what chose is not what is tested."""
    settings = [["model=sw_mlp", f"width={width}"] for width in (60, 70, 80, 100, 120, 140, 170, 200, 250)]
    sweep = Sweep(
        tmp_path,
        [*settings, ["model=mlp"]],
        6,
        ["budget=parameters", "weights=1024", "connections=auto", "model.readout_dimension=32"],
    )
    sweeps, false, differences = 200, 0, []
    for number in range(sweeps):
        generator = np.random.default_rng([13, number])
        cells = [[dict(row) for row in own] for own in sweep.rows]
        fill(cells, Truth(), generator)
        found = report_of([row for own in cells for row in own], draws=1000)
        (pair,) = found.pairs
        assert pair.chosen_on == ["0", "1", "2"] and pair.difference.seeds == 3
        false += pair.is_decided
        differences.append(pair.difference.value)
    assert false <= at_most(0.05, sweeps)
    assert abs(np.mean(differences)) < 3.3 * np.std(differences) / sweeps**0.5
