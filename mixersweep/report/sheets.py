"""The tables of a report: their raw values and how these are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mixersweep.report import sizes
from mixersweep.report.bootstrap import Interval
from mixersweep.report.claims import ALPHA
from mixersweep.report.say import format_interval, format_points, plural
from mixersweep.report.statistics import Statistics
from mixersweep.report.verdicts import judge_pair, judge_trend


@dataclass(frozen=True)
class Column:
    """A column of a table; ``show`` formats a raw value, and numbers are aligned right.

    ``bound`` is the key that says whether the value is only an upper bound.
    """

    key: str
    header: str
    show: Callable[[Any], str] = str
    is_number: bool = True
    bound: str | None = None

    def text(self, row: dict[str, Any]) -> str:
        """The text of this column's cell in a row; a dash for None."""
        if row[self.key] is None:
            return "–"
        if self.bound and row[self.bound]:
            return f"≤ {row[self.key]:.2g}"
        return self.show(row[self.key])


@dataclass(frozen=True)
class Sheet:
    """A small table of results: raw ``rows``, and ``texts``, the same as they are shown."""

    name: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    note: str = ""

    @property
    def texts(self) -> list[list[str]]:
        """The rows as they are shown."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def _with_values(columns: list[Column], rows: list[dict[str, Any]]) -> list[Column]:
    """The columns in which at least one row has a value."""
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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _percents(interval: Interval) -> str:
    return " to ".join(f"{100 * bound:.2f}".replace("-", "−") for bound in interval)


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def accuracy_sheet(statistics: Statistics) -> Sheet:
    """Test accuracy and sizes, a row for each model, width and shape."""
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
        Column("model", "model", is_number=False),
        Column("shape", "shape", is_number=False),
        Column("width", "width m", _whole),
        Column("tokens", "S", _whole),
        Column("channels", "C", _whole),
        Column("connections", "Ω", _whole),
        Column("density", "density", "{:.3g}".format),
        Column("mixing_parameters", "mixing weights", _whole),
        Column("parameters", "parameters", _whole),
        Column("learning_rate", "learning rate", "{:g}".format),
        Column("seeds", "seeds", _whole),
        Column("test_accuracy", "test accuracy %", _percent),
        Column("standard_deviation", "sd", _percent),
        Column("interval_over_seeds", "95% over seeds", _percents),
        Column("interval_over_seeds_and_images", "95% over seeds and images", _percents),
        Column("train_loss", "training loss", "{:.3f}".format),
        Column("seconds", "seconds", "{:.1f}".format),
    ]
    images = f"{statistics.images:,} test images" if statistics.images else "no test predictions"
    note = f"Means over seeds with 95% intervals; sd is the standard deviation over seeds; {images}."
    return Sheet("accuracy", "Test accuracy by model and width", _with_values(columns, rows), rows, note)


def number_sheet(rows: list[dict[str, Any]], note: str) -> Sheet:
    """The numbers behind the answer, a row for each verdict."""
    columns = [
        Column("of", "", is_number=False),
        Column("value", "points", partial(format_points, unit=False)),
        Column("interval", "95% interval", format_interval),
        Column("p_holm", "p (Holm)", _p_cell, bound="p_is_bound"),
        Column("n", "n", _whole),
        Column("seeds", "seeds", _whole),
    ]
    return Sheet("numbers", "The numbers behind the verdicts", _with_values(columns, rows), rows, note)


def pair_sheet(statistics: Statistics) -> Sheet:
    """The primary tests, a row for each pair of models."""
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
            "verdict": judge_pair(pair).in_full,
        }
        for pair in statistics.pairs
    ]
    columns = [
        Column("first", "model A", is_number=False),
        Column("second", "model B", is_number=False),
        Column("widths", "widths", _whole),
        Column("pairs", "pairs of runs", _whole),
        Column("seeds", "seeds", _whole),
        Column("difference", "A − B, points", _points_cell),
        *_TEST_COLUMNS,
        Column("clean_difference", "without rank-limited heads", _points_cell),
        Column("clean_interval", "95% without them", format_interval),
        Column("sizes", "sizes differ by", _sizes_cell, is_number=False),
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
            " Not tested, having no equal targets: " + "; ".join(f"{a} and {b}" for a, b in statistics.unpaired) + "."
        )
    left = [f"{pair.first} and {pair.second} at {where}" for pair in statistics.pairs for where in pair.left_out]
    if left:
        note += f" Left out: {'; '.join(left)}."
    return Sheet("pairs", "Differences between models", _with_values(columns, rows), rows, note)


def _tested(statistics: Statistics) -> str:
    """Describe how claims are tested."""
    effect = statistics.cell_effect
    widths = (
        f"other effects of single widths (sd {100 * effect.variance**0.5:.2f} points, from {effect.freedom} residuals "
        "of the trends) are random effects"
        if effect is not None
        else "intervals take each width's learning rate and sizes as given, since there are too few widths to estimate "
        "other effects of single widths"
    )
    return (
        f"seeds and test images are resampled together, {statistics.draws:,} draws; {widths}; p is two-sided, "
        f"corrected by Holm for the {plural(statistics.claims, 'claim')} of this report, significant up to {ALPHA:g}; "
        "a detectable effect would be shown 4 times in 5."
    )


def trend_sheet(statistics: Statistics) -> Sheet:
    """The trends of accuracy with log2 of the width, a row for each model and branch."""
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
            "verdict": judge_trend(trend).in_full,
        }
        for trend in statistics.trends
    ]
    columns = [
        Column("model", "model", is_number=False),
        Column("branch", "branch", is_number=False),
        Column("widths", "widths", _whole),
        Column("narrowest", "from width", _whole),
        Column("widest", "to width", _whole),
        Column("runs", "runs", _whole),
        Column("seeds", "seeds", _whole),
        Column("rise", "change, points", _points_cell),
        *_TEST_COLUMNS,
        Column("slope", "points per doubling", _points_cell),
        Column("sizes", "what else changes", _sizes_cell, is_number=False),
    ]
    note = (
        "Slope of test accuracy on log2 of the width, by least squares through the means of the widths, times the "
        f"range of widths (and per doubling, where the range is one or more); {_tested(statistics)}"
    )
    mixers = [row for row in statistics.comparison.rows if row["shape"]]
    if mixers and statistics.comparison.budget == "connections" and all(row["expansion"] == 1 for row in mixers):
        note += " At γ = 1 and fixed Ω, a Mixer's width determines its C / S: the trend is one of both."
    return Sheet("trends", "Trends of accuracy with width", _with_values(columns, rows), rows, note)


def width_sheet(statistics: Statistics) -> Sheet:
    """The differences at each width, a row for each pair of models and width."""
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
        Column("first", "model A", is_number=False),
        Column("second", "model B", is_number=False),
        Column("width", "target width", _whole),
        Column("shape", "shape", is_number=False),
        Column("seeds", "pairs of runs", _whole),
        Column("difference", "A − B, points", _points_cell),
        Column("interval_over_seeds", "95% over seeds (t)", format_interval),
        Column("interval_over_seeds_and_images", "95% over seeds and images", format_interval),
        Column("p_t", "p (t-test)", _p_cell),
        Column("p_sign", "p (sign flips)", _p_cell),
    ]
    note = (
        "Descriptive: Student's t-test over seeds, and the exact sign-flip test where there are enough pairs for it to "
        f"reach {ALPHA:g}; not corrected for the number of tests, so nothing is claimed for a single width."
    )
    return Sheet("widths", "Differences at each width", _with_values(columns, rows), rows, note)


def rate_sheet(statistics: Statistics) -> Sheet:
    """The search for learning rates, a row for each model and width: validation accuracy by rate, and the best."""
    rows = []
    for cell in statistics.cells:
        rates = statistics.comparison.rates[cell.cell]
        if not rates.is_searched:
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
        Column("model", "model", is_number=False),
        Column("shape", "shape", is_number=False),
        Column("width", "width m", _whole),
        Column("learning_rate", "learning rate", "{:g}".format),
        Column("seeds", "search seeds", _whole),
        Column("curve", "rates tried: validation accuracy %", _curve, is_number=False),
        Column("best", "position of the best", is_number=False),
    ]
    note = (
        "Mean validation accuracy, where a diverged run counts as 0. Where the best rate is the lowest or highest "
        "tried, or no rate was searched, no trend is claimed."
    )
    return Sheet("rates", "Search for learning rates", _with_values(columns, rows), rows, note)


def _curve(values: list[dict[str, Any]]) -> str:
    """``0.0316: 74.0, 0.1: 79.8, 0.316: 40.1 (1 diverged)``."""
    text = []
    for value in values:
        gone = f" ({value['diverged']} diverged)" if value["diverged"] else ""
        text.append(f"{value['learning_rate']:g}: {100 * value['validation_accuracy']:.1f}{gone}")
    return ", ".join(text)


def _sizes_cell(found: Mapping[str, float]) -> str:
    """The sizes that differ by more than 5%, else the one that differs most."""
    name, difference = next(iter(found.items()), ("", 0.0))
    return sizes.describe_large(found) or (f"{name} {difference:.2%}" if difference else "equal")


def _points_cell(fraction: float) -> str:
    return f"{100 * fraction:+.2f}".replace("-", "−")


def _p_cell(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


_TEST_COLUMNS = (
    Column("interval_over_seeds", "95% over seeds", format_interval),
    Column("interval_over_seeds_and_images", "95% over seeds and images", format_interval),
    Column("p", "p", _p_cell, bound="p_is_bound"),
    Column("p_holm", "p (Holm)", _p_cell, bound="p_is_bound"),
    Column("detectable", "detectable, points", _percent),
)
"""The intervals, p-values and detectable size of a claim, alike for pairs and trends."""
