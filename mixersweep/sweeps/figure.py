"""The figure of a plan: how wide and how sparse a Mixer is at each number of channels (Hayase & Karakida 2024, Fig. 3).

At fixed connections Omega and expansion g (eqs 13-15),  S(C) = (sqrt(C² + 8·Omega / (g·C)) - C) / 2,  m = C·S,
p = Omega / (g·m²); m is largest, (Omega/g)^(2/3), at C = S = (Omega/g)^(1/3). With budget=parameters what is fixed is
Pi = g·(S² + C²) / 2, so that S(C) = sqrt(2·Pi/g - C²). Drawn with matplotlib (extra ``report``), no display needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixersweep.errors import UserError
from mixersweep.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart with any kind of sight; markers and lines tell the same in grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


class Law(NamedTuple):
    """What a curve holds fixed: ``amount`` connections or weights, at an expansion."""

    budget: str
    amount: int
    expansion: float

    def tokens(self, channels: float) -> float:
        """S(C), not rounded; NaN where no network has so many channels."""
        if self.budget == "parameters":
            rest = 2 * self.amount / self.expansion - channels**2
            return math.sqrt(rest) if rest >= 1 else math.nan
        tokens = (math.sqrt(channels**2 + 8 * self.amount / (self.expansion * channels)) - channels) / 2
        return tokens if tokens >= 1 else math.nan

    def width(self, channels: float) -> float:
        """m(C) = C·S(C)."""
        return channels * self.tokens(channels)

    def density(self, channels: float) -> float:
        """p(C): the mean of the shares of a token and a channel matrix that are there, (S + C) / (2·m)."""
        return (self.tokens(channels) + channels) / (2 * self.width(channels))

    @property
    def peak(self) -> float:
        """The channels at which m is largest, where S = C."""
        ratio = self.amount / self.expansion
        return math.sqrt(ratio) if self.budget == "parameters" else ratio ** (1 / 3)

    def __str__(self) -> str:
        power = math.log2(self.amount)
        amount = f"$2^{{{power:.0f}}}$" if power == int(power) else f"{self.amount:,}"
        return f"{'Π' if self.budget == 'parameters' else 'Ω'} = {amount}, γ = {self.expansion:g}"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the figure of these runs to ``path``, whose suffix says the format.

    Raises ``UserError`` where matplotlib is missing, the format unknown, or no run has channels.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise UserError(f"--figure {path}: the name has to end in .{', .'.join(FORMATS)}")
    mixers = [run for run in runs if run.architecture.channels is not None and run.architecture.tokens is not None]
    if not mixers:
        raise UserError("--figure: no run of this plan has channels; plan a Mixer, such as model=s_mixer")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--figure: needs matplotlib; pip install 'mixersweep[report]'") from None

    figure = Figure(figsize=(7.0, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    laws = list(dict.fromkeys(_law(run) for run in mixers))
    channels = [float(run.architecture.channels or 0) for run in mixers]
    low = max(0.8, min([*channels, *(law.peak for law in laws)]) / 2)
    high = max([*channels, *(law.peak for law in laws)]) * 2
    grid = [low * (high / low) ** (i / 400) for i in range(401)]
    _curves(upper, laws, grid, Law.width)
    _curves(lower, laws, grid, Law.density)
    for law in laws if len(laws) <= 3 else []:
        _mark_peak(upper, lower, law)
    _points(upper, mixers, lambda run: run.architecture.width)
    _points(lower, mixers, lambda run: run.architecture.density)
    others = [run for run in runs if run.architecture.channels is None]
    _beside(upper, others, lambda run: run.architecture.width)
    _beside(lower, others, lambda run: run.architecture.density)
    _label(figure, upper, lower)
    try:
        figure.savefig(path, format=kind, dpi=200)
    except OSError as error:
        raise UserError(f"--figure {path}: cannot be written: {error.strerror}") from None


def _law(run: Run) -> Law:
    a = run.architecture
    if a.weights_target is not None:
        return Law("parameters", a.weights_target, a.expansion)
    return Law("connections", a.connections_target, a.expansion)


def _curves(axes: Axes, laws: Sequence[Law], grid: Sequence[float], quantity: Callable[[Law, float], float]) -> None:
    for number, law in enumerate(laws):
        line, grey = LINES[number % len(LINES)], f"{0.25 + 0.05 * min(number, 8):.2f}"
        label = str(law) if len(laws) <= 6 else None
        axes.plot(grid, [quantity(law, c) for c in grid], line, color=grey, linewidth=1.6, label=label, zorder=1)


def _mark_peak(upper: Axes, lower: Axes, law: Law) -> None:
    """Where the network of a law is widest and sparsest, through both panels."""
    for axes in (upper, lower):
        axes.axvline(law.peak, color="0.8", linewidth=0.9, zorder=0)
    said: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (4, 0), "textcoords": "offset points"}
    lower.annotate("S = C", (law.peak, 0.95), fontsize=8, color="0.4", **said)


def _points(axes: Axes, runs: Sequence[Run], value: Callable[[Run], float]) -> None:
    """A point a shape, with the marker of its family; those of several families at one place stay visible."""
    models = list(dict.fromkeys(run.config.model.name for run in runs))
    for number, model in enumerate(models):
        alike = [run for run in runs if run.config.model.name == model]
        places = sorted({(float(run.architecture.channels or 0), value(run)) for run in alike})
        axes.scatter(
            [channels for channels, _ in places],
            [height for _, height in places],
            100 - 70 * number / max(1, len(models) - 1) if len(models) > 1 else 60,
            marker=MARKERS[number % len(MARKERS)],
            facecolors="none" if number % 2 == 0 and len(models) > 1 else COLOURS[number % len(COLOURS)],
            edgecolors=COLOURS[number % len(COLOURS)],
            linewidths=1.6,
            label=model,
            zorder=3 + number,
        )


def _beside(axes: Axes, runs: Sequence[Run], value: Callable[[Run], float]) -> None:
    """Networks without channels, at the right edge: their height alone says something."""
    for number, model in enumerate(dict.fromkeys(run.config.model.name for run in runs)):
        heights = sorted({value(run) for run in runs if run.config.model.name == model})
        axes.update_datalim([(1.0, height) for height in heights], updatex=False)
        axes.scatter(
            [0.985] * len(heights),
            heights,
            transform=axes.get_yaxis_transform(),
            marker="<",
            s=55,
            facecolors="white" if number % 2 else COLOURS[-1 - number % len(COLOURS)],
            edgecolors=COLOURS[-1 - number % len(COLOURS)],
            label=f"{model} (no channels)",
            zorder=5,
        )


def _label(figure: Figure, upper: Axes, lower: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain: Any = FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1 else f"{value:,.0f}")
    for axes in (upper, lower):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(True, which="major", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(plain)
    upper.set_ylabel("effective width  m = S·C  (units)")
    lower.set_ylabel("density  p = Ω / (γ·m²)")
    lower.set_xlabel("channels  C")
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
