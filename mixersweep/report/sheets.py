"""The tables of a report: raw values for machines, texts for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixersweep.report.answer import between
from mixersweep.report.bootstrap import DRAWS, Interval
from mixersweep.report.statistics import ALPHA, Pair, Statistics, Trend


@dataclass(frozen=True)
class Column:
    """``show`` makes the text of a cell from the raw value; numbers stand right."""

    key: str
    header: str
    show: Callable[[Any], str] = str
    number: bool = True


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
        """The rows as they are read; nothing is a dash."""
        return [["–" if row[c.key] is None else c.show(row[c.key]) for c in self.columns] for row in self.rows]


def _with_values(columns: list[Column], rows: list[dict[str, Any]]) -> list[Column]:
    """The columns that any row has a value in."""
    return [c for c in columns if any(row[c.key] is not None for row in rows)]


def sheets(statistics: Statistics) -> list[Sheet]:
    """The tables of one comparison that have any rows."""
    made = [accuracy_sheet(statistics), pair_sheet(statistics), trend_sheet(statistics), width_sheet(statistics)]
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
            "clean_difference": pair.clean and pair.clean.value,
            "clean_interval": pair.clean and pair.clean.interval,
            "residual": pair.residual,
            "verdict": verdict(pair),
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
        Column("p", "p", p_only),
        Column("p_holm", "p Holm", p_only),
        Column("clean_difference", "without rank-limited heads", points_only),
        Column("clean_interval", "95%", between),
        Column("residual", "sizes differ by", "{:.2%}".format),
        Column("verdict", "verdict", number=False),
    ]
    best = statistics.pairs and statistics.pairs[0].at_best is not None
    joined = (
        "The best width of each model, chosen on validation"
        if best
        else "Paired at equal target width and connections, shape and seed, pooled over widths"
    )
    note = (
        f"{joined}; seeds and test images resampled together, {DRAWS:,} draws; p two-sided, corrected by Holm over "
        f"{len(rows)} pair{'s' * (len(rows) != 1)}, decided at {ALPHA:g}."
    )
    if statistics.unpaired:
        note += (
            " Never at equal targets, so not tested: " + "; ".join(f"{a} and {b}" for a, b in statistics.unpaired) + "."
        )
    left = [f"{pair.first} and {pair.second} at {where}" for pair in statistics.pairs for where in pair.left_out]
    if left:
        note += f" Left out: {'; '.join(left)}."
    return Sheet("pairs", "Models against each other", _with_values(columns, rows), rows, note)


def verdict(pair: Pair) -> str:
    """What the primary test says."""
    if pair.p_holm is None:
        return "one seed decides nothing"
    if not pair.decided:
        return "not without rank-limited heads" if pair.shown else "no difference shown"
    return f"{pair.first if pair.difference.value > 0 else pair.second} is better"


def trend_sheet(statistics: Statistics) -> Sheet:
    """Accuracy against log2 of the width."""
    rows = [
        {
            "model": trend.variant,
            "branch": trend.branch,
            "widths": len(trend.widths),
            "narrowest": trend.widths[0],
            "widest": trend.widths[-1],
            "runs": trend.slope.runs,
            "seeds": trend.slope.seeds,
            "slope": trend.slope.value,
            "interval_over_seeds": trend.slope.over_seeds,
            "interval_over_seeds_and_images": trend.slope.over_seeds_and_images,
            "clean_slope": trend.clean and trend.clean.value,
            "clean_interval": trend.clean and trend.clean.interval,
            "verdict": trend_verdict(trend),
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
        Column("slope", "points a doubling", points_only),
        Column("interval_over_seeds", "95% over seeds", between),
        Column("interval_over_seeds_and_images", "95% over seeds and images", between),
        Column("clean_slope", "without rank-limited heads", points_only),
        Column("clean_interval", "95%", between),
        Column("verdict", "verdict", number=False),
    ]
    note = "Slope of test accuracy on log2 of the width, by least squares through the means of the widths."
    mixers = [row for row in statistics.comparison.rows if row["shape"]]
    if mixers and statistics.comparison.budget == "connections" and all(row["expansion"] == 1 for row in mixers):
        note += " At γ = 1 and fixed Ω, width and C / S are one variable of a Mixer: this is a trend of both."
    return Sheet("trends", "Accuracy against width", _with_values(columns, rows), rows, note)


def trend_verdict(trend: Trend) -> str:
    """What the slope's interval says."""
    if trend.slope.interval is None:
        return "one seed decides nothing"
    if not trend.decided:
        return "not without rank-limited heads" if trend.shown else "no trend shown"
    return "wider is better" if trend.slope.value > 0 else "wider is worse"


def width_sheet(statistics: Statistics) -> Sheet:
    """The secondary tests, a row a pair of models and width."""
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
            "smallest_p": test.smallest_p,
            "verdict": test.verdict,
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
        Column("smallest_p", "smallest p that n allows", p_only),
        Column("verdict", "verdict, by sign flips", number=False),
    ]
    note = "Secondary and not corrected for their number: Student's t over seeds, and the exact sign-flip test."
    return Sheet("widths", "At each width", _with_values(columns, rows), rows, note)


def points_only(share: float) -> str:
    """Percentage points without the word."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_only(p: float) -> str:
    """A p without the letter."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
