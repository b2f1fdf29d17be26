"""The tables of a report: raw values for machines, texts for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mixersweep.report import sizes
from mixersweep.report.bootstrap import Interval
from mixersweep.report.claims import ALPHA
from mixersweep.report.say import between, points
from mixersweep.report.statistics import Statistics
from mixersweep.report.verdicts import of_pair, of_trend


@dataclass(frozen=True)
class Column:
    """``show`` makes the text of a cell from the raw value; numbers stand right.

    ``bound`` names the key that says whether the value is an upper bound alone.
    """

    key: str
    header: str
    show: Callable[[Any], str] = str
    number: bool = True
    bound: str | None = None

    def text(self, row: dict[str, Any]) -> str:
        """A cell as it is read; nothing is a dash."""
        if row[self.key] is None:
            return "–"
        if self.bound and row[self.bound]:
            return f"≤ {row[self.key]:.2g}"
        return self.show(row[self.key])


@dataclass(frozen=True)
class Sheet:
    """A small table of results: raw ``rows`` for machines, ``texts`` for people."""

    name: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    note: str = ""

    @property
    def texts(self) -> list[list[str]]:
        """The rows as they are read."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def _with_values(columns: list[Column], rows: list[dict[str, Any]]) -> list[Column]:
    """The columns that any row has a value in."""
    return [c for c in columns if any(row[c.key] is not None for row in rows)]


def sheets(statistics: Statistics) -> list[Sheet]:
    """The tables of one comparison that have any rows."""
    made = [
        accuracy_sheet(statistics),
        pair_sheet(statistics),
        trend_sheet(statistics),
        width_sheet(statistics),
        rate_sheet(statistics),
    ]
    return [sheet for sheet in made if sheet.rows]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _percents(interval: Interval) -> str:
    return " to ".join(f"{100 * bound:.2f}".replace("-", "−") for bound in interval)


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def accuracy_sheet(statistics: Statistics) -> Sheet:
    """A row a model, width and shape."""
    rows = []
    for cell in statistics.cells:
        first, e, mean = cell.rows[0], cell.accuracy, cell.mean
        rows.append(
            {
                "model": cell.cell[0],
                "shape": cell.cell[2],
                "width": first["width"],
                "tokens": first["tokens"],
                "channels": first["channels"],
                "connections": first["connections"],
                "density": first["density"],
                "mixing_parameters": first["mixing_parameters"],
                "parameters": first["parameters"],
                "learning_rate": first["optim.lr"],
                "seeds": len(cell.rows),
                "test_accuracy": e.value,
                "standard_deviation": cell.spread,
                "interval_over_seeds": e.over_seeds,
                "interval_over_seeds_and_images": e.over_seeds_and_images,
                "train_loss": mean.get("train_loss"),
                "seconds": mean.get("seconds"),
            }
        )
    columns = [
        Column("model", "model", number=False),
        Column("shape", "shape", number=False),
        Column("width", "width m", _whole),
        Column("tokens", "S", _whole),
        Column("channels", "C", _whole),
        Column("connections", "Ω", _whole),
        Column("density", "density", "{:.3g}".format),
        Column("mixing_parameters", "mixing weights", _whole),
        Column("parameters", "parameters", _whole),
        Column("learning_rate", "lr", "{:g}".format),
        Column("seeds", "seeds n", _whole),
        Column("test_accuracy", "test accuracy %", _percent),
        Column("standard_deviation", "sd", _percent),
        Column("interval_over_seeds", "95% over seeds", _percents),
        Column("interval_over_seeds_and_images", "95% over seeds and images", _percents),
        Column("train_loss", "training loss", "{:.3f}".format),
        Column("seconds", "seconds", "{:.1f}".format),
    ]
    images = f"{statistics.images:,} test images" if statistics.images else "no test predictions"
    note = f"Means over n seeds; sd is the standard deviation of a run; {images}."
    return Sheet("accuracy", "Test accuracy by model and width", _with_values(columns, rows), rows, note)


def number_sheet(rows: list[dict[str, Any]], note: str) -> Sheet:
    """The numbers of the answer, a row a verdict."""
    columns = [
        Column("of", "", number=False),
        Column("value", "points", partial(points, unit=False)),
        Column("interval", "95%", between),
        Column("p_holm", "p", p_only, bound="p_is_bound"),
        Column("n", "n", _whole),
        Column("seeds", "seeds", _whole),
    ]
    return Sheet("numbers", "The numbers", _with_values(columns, rows), rows, note)


def pair_sheet(statistics: Statistics) -> Sheet:
    """The primary tests."""
    rows = [
        {
            "first": pair.first,
            "second": pair.second,
            "widths": len({width for width, _ in pair.widths}),
            "pairs": pair.pairs,
            "seeds": pair.difference.seeds,
            "images": pair.difference.images,
            "difference": pair.difference.value,
            "interval_over_seeds": pair.difference.over_seeds,
            "interval_over_seeds_and_images": pair.difference.over_seeds_and_images,
            "p": pair.difference.p,
            "p_holm": pair.p_holm,
            "p_is_bound": pair.difference.at_floor,
            "detectable": pair.difference.detectable,
            "clean_difference": pair.clean and pair.clean.value,
            "clean_interval": pair.clean and pair.clean.interval,
            "sizes": pair.sizes,
            "verdict": of_pair(pair).recorded,
        }
        for pair in statistics.pairs
    ]
    columns = [
        Column("first", "model", number=False),
        Column("second", "minus", number=False),
        Column("widths", "widths", _whole),
        Column("pairs", "pairs n", _whole),
        Column("seeds", "seeds", _whole),
        Column("difference", "difference, points", points_only),
        Column("interval_over_seeds", "95% over seeds", between),
        Column("interval_over_seeds_and_images", "95% over seeds and images", between),
        Column("p", "p", p_only, bound="p_is_bound"),
        Column("p_holm", "p Holm", p_only, bound="p_is_bound"),
        Column("detectable", "would show", _percent),
        Column("clean_difference", "without rank-limited heads", points_only),
        Column("clean_interval", "95%", between),
        Column("sizes", "sizes differ by", differing, number=False),
    ]
    best = statistics.pairs and statistics.pairs[0].at_best is not None
    joined = (
        "The best width of each model, chosen on validation with seeds that are not tested"
        if best
        else "Paired at equal target width and connections, shape and seed, pooled over widths"
    )
    note = f"{joined}; {_tested(statistics)}"
    if statistics.unpaired:
        note += (
            " Never at equal targets, so not tested: " + "; ".join(f"{a} and {b}" for a, b in statistics.unpaired) + "."
        )
    left = [f"{pair.first} and {pair.second} at {where}" for pair in statistics.pairs for where in pair.left_out]
    if left:
        note += f" Left out: {'; '.join(left)}."
    return Sheet("pairs", "Models against each other", _with_values(columns, rows), rows, note)


def _tested(statistics: Statistics) -> str:
    """How claims are tested, in words."""
    between, claims = statistics.between, statistics.claims
    apart = (
        f"what else sets a width apart (sd {100 * between.variance**0.5:.2f} points, from {between.freedom} residuals "
        "of the trends) is a random effect"
        if between is not None
        else "intervals are given each width's learning rate and sizes, as there are too few widths to say what else "
        "sets one apart"
    )
    return (
        f"seeds and test images resampled together, {statistics.draws:,} draws; {apart}; p two-sided, corrected by "
        f"Holm over the {claims} claim{'s' * (claims != 1)} of this report, decided at {ALPHA:g}; an effect that would "
        "show is shown 4 times in 5."
    )


def trend_sheet(statistics: Statistics) -> Sheet:
    """Accuracy against log2 of the width, quoted over the range of widths."""
    rows = [
        {
            "model": trend.variant,
            "branch": trend.branch,
            "widths": len(trend.widths),
            "narrowest": trend.widths[0],
            "widest": trend.widths[-1],
            "runs": trend.slope.runs,
            "seeds": trend.slope.seeds,
            "rise": trend.rise.value,
            "interval_over_seeds": trend.rise.over_seeds,
            "interval_over_seeds_and_images": trend.rise.over_seeds_and_images,
            "p": trend.slope.p,
            "p_holm": trend.p_holm,
            "p_is_bound": trend.slope.at_floor,
            "detectable": trend.rise.detectable,
            "slope": trend.slope.value if trend.doublings >= 1 else None,
            "sizes": trend.sizes,
            "verdict": of_trend(trend).recorded,
        }
        for trend in statistics.trends
    ]
    columns = [
        Column("model", "model", number=False),
        Column("branch", "branch", number=False),
        Column("widths", "widths", _whole),
        Column("narrowest", "from", _whole),
        Column("widest", "to", _whole),
        Column("runs", "runs n", _whole),
        Column("seeds", "seeds", _whole),
        Column("rise", "points from first to last", points_only),
        Column("interval_over_seeds", "95% over seeds", between),
        Column("interval_over_seeds_and_images", "95% over seeds and images", between),
        Column("p", "p", p_only, bound="p_is_bound"),
        Column("p_holm", "p Holm", p_only, bound="p_is_bound"),
        Column("detectable", "would show", _percent),
        Column("slope", "points a doubling", points_only),
        Column("sizes", "changes along it", differing, number=False),
    ]
    note = (
        "Slope of test accuracy on log2 of the width, by least squares through the means of the widths, over the range "
        f"that was measured (and a doubling, where there is one); {_tested(statistics)}"
    )
    mixers = [row for row in statistics.comparison.rows if row["shape"]]
    if mixers and statistics.comparison.budget == "connections" and all(row["expansion"] == 1 for row in mixers):
        note += " At γ = 1 and fixed Ω, width and C / S are one variable of a Mixer: this is a trend of both."
    return Sheet("trends", "Accuracy against width", _with_values(columns, rows), rows, note)


def width_sheet(statistics: Statistics) -> Sheet:
    """The models at each width, a row a pair of models and width."""
    rows = [
        {
            "first": test.first,
            "second": test.second,
            "width": test.width,
            "shape": test.shape,
            "seeds": test.seeds,
            "difference": test.difference,
            "interval_over_seeds": test.interval,
            "interval_over_seeds_and_images": test.over_seeds_and_images,
            "p_t": test.p_t,
            "p_sign": test.p_sign,
        }
        for test in statistics.per_width
    ]
    columns = [
        Column("first", "model", number=False),
        Column("second", "minus", number=False),
        Column("width", "target width", _whole),
        Column("shape", "shape", number=False),
        Column("seeds", "pairs n", _whole),
        Column("difference", "difference, points", points_only),
        Column("interval_over_seeds", "95% over seeds (t)", between),
        Column("interval_over_seeds_and_images", "95% over seeds and images", between),
        Column("p_t", "p of t", p_only),
        Column("p_sign", "p of sign flips", p_only),
    ]
    note = (
        "Described, not decided: Student's t over seeds, and the exact sign-flip test where n could reach "
        f"{ALPHA:g}; not corrected for their number, so nothing is claimed of a single width."
    )
    return Sheet("widths", "At each width", _with_values(columns, rows), rows, note)


def rate_sheet(statistics: Statistics) -> Sheet:
    """How each learning rate was found: the curve of rates, and where its best lies."""
    rows = []
    for cell in statistics.cells:
        rates = statistics.comparison.rates[cell.cell]
        if not rates.searched:
            continue
        rows.append(
            {
                "model": cell.cell[0],
                "shape": cell.cell[2],
                "width": cell.rows[0]["width"],
                "learning_rate": rates.compared,
                "seeds": max(map(len, rates.tried.values())),
                "curve": [
                    {"learning_rate": rate, "validation_accuracy": mean, "diverged": rates.tried[rate].count(None)}
                    for rate, mean in rates.means.items()
                ],
                "best": f"the {rates.edge} tried" if rates.edge else "inside",
            }
        )
    columns = [
        Column("model", "model", number=False),
        Column("shape", "shape", number=False),
        Column("width", "width m", _whole),
        Column("learning_rate", "lr", "{:g}".format),
        Column("seeds", "seeds that chose", _whole),
        Column("curve", "validation accuracy % by lr", _curve, number=False),
        Column("best", "best", number=False),
    ]
    note = (
        "Mean validation accuracy, where a diverged run counts as 0. Where the best is the lowest or highest that was "
        "tried, or nothing was searched, no trend is claimed."
    )
    return Sheet("rates", "Learning rates", _with_values(columns, rows), rows, note)


def _curve(values: list[dict[str, Any]]) -> str:
    """``0.0316: 74.0, 0.1: 79.8, 0.316: 40.1 (1 diverged)``."""
    said = []
    for value in values:
        gone = f" ({value['diverged']} diverged)" if value["diverged"] else ""
        said.append(f"{value['learning_rate']:g}: {100 * value['validation_accuracy']:.1f}{gone}")
    return ", ".join(said)


def differing(found: Mapping[str, float]) -> str:
    """Sizes that differ by more than 5%, or the one that differs most."""
    name, share = next(iter(found.items()), ("", 0.0))
    return sizes.beyond(found) or (f"{name} {share:.2%}" if share else "equal")


def points_only(share: float) -> str:
    """Percentage points without the word."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_only(p: float) -> str:
    """A p without the letter."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
