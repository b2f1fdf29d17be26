"""Plot width and density of Mixers over the number of channels (Hayase & Karakida 2024, Fig. 3): ``plan --figure``.

A curve is the budget's own rule (``budget.rules``) without the rounding to whole sizes: at fixed connections Omega and
expansion g (eqs 13-15),  Omega = g·C·S·(S + C) / 2,  m = C·S,  p = Omega / (g·m²), and m is largest, (Omega/g)^(2/3),
at C = S = (Omega/g)^(1/3). With budget=parameters, Pi = g·(S² + C²) / 2 is fixed instead; with count=real or
budget=flops, the actual count of the network is. The density is always that of the square layers. Drawn with
matplotlib, which needs no display.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mixersweep.budget.expansion import Expansion
from mixersweep.budget.rules import Formula, Rule, rule_of
from mixersweep.budget.terms import TARGETS, exact
from mixersweep.config import request_of
from mixersweep.errors import UserError
from mixersweep.figures import PAPER, Look, frame, looks_of, save, ticked
from mixersweep.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

LINE_STYLES = ("-", "--", "-.", ":")
"""The line styles that distinguish several curves, beside their shades of grey."""

BUDGETS_AND_COUNTS: dict[str, tuple[Literal["connections", "parameters", "flops"], Literal["formula", "real"]]] = {
    "flops_target": ("flops", "formula"),
    "weights_real_target": ("parameters", "real"),
    "connections_real_target": ("connections", "real"),
    "weights_target": ("parameters", "formula"),
    "connections_target": ("connections", "formula"),
}
"""The settings ``budget`` and ``count`` that belong to each target of a solved architecture."""


class Law(NamedTuple):
    """The constraint that a curve obeys: the count of a Mixer by ``rule`` equals ``target``."""

    rule: Rule
    target: float

    def tokens(self, channels: float) -> float:
        """Return the number of tokens S(C), not rounded; NaN if no network has so many channels."""
        if self.rule.smooth(1, channels) > self.target:
            return math.nan
        return _find_root(lambda tokens: self.rule.smooth(tokens, channels) - self.target)

    def width(self, channels: float) -> float:
        """Return the effective width m(C) = C·S(C)."""
        return channels * self.tokens(channels)

    def density(self, channels: float) -> float:
        """Return the density p(C) = (S + C) / (2·m), the mean fraction of nonzeros in token and channel matrices."""
        return (self.tokens(channels) + channels) / (2 * self.width(channels))

    @property
    def peak(self) -> float:
        """The number of channels at which the width m is largest, not rounded."""
        low, high = 0.0, math.log2(_find_root(lambda channels: self.rule.smooth(1, channels) - self.target))
        while high - low > 1e-9:  # m rises with C up to the peak, and then falls
            left, right = (2 * low + high) / 3, (low + 2 * high) / 3
            rises = self.width(2**left) < self.width(2**right)
            low, high = (left, high) if rises else (low, right)
        return float(2**low)

    @property
    def is_square_at_peak(self) -> bool:
        """Whether the peak is at S = C, as it is if square layers of equal expansions are counted."""
        return self.rule.is_formula and self.rule.expansion.token == self.rule.expansion.channel

    def __str__(self) -> str:
        power = math.log2(self.target)
        amount = f"$2^{{{power:.0f}}}$" if power == int(power) else f"{self.target:,}"
        token, channel, _ = self.rule.expansion
        factor = f"γ = {float(token):g}" + (f", {float(channel):g}" if token != channel else "")
        if self.rule.counts == "flops":
            text = f"{self.target:,} FLOPs"
        else:
            text = f"{'Π' if self.rule.counts == 'weights' else 'Ω'} = {amount}"
        if isinstance(self.rule, Formula):
            return f"{text}, {factor}"
        if self.rule.counts != "flops":
            text += " (real)"
        without = {"resize": ", resizing stem"}.get(self.rule.stem, ", no skip" if self.rule.skips == "never" else "")
        return f"{text}, {factor}, L = {self.rule.depth}{without}"


def _find_root(function: Callable[[float], float]) -> float:
    """Find the root of a rising function on [1, inf) by bisection; returns 1 if the function is positive there."""
    low, high = 1.0, 2.0
    while function(high) < 0:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low if low == 1 else high


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw the figure of these runs into the file ``path``, whose suffix gives the format.

    Raises ``UserError`` if the format is unknown, no run has channels, or the file cannot be written.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise UserError(f"--figure {path}: the name has to end in .{', .'.join(FORMATS)}")
    mixers = [run for run in runs if run.architecture.channels is not None and run.architecture.tokens is not None]
    if not mixers:
        raise UserError("--figure: no run of this plan has channels; plan a Mixer, such as model=s_mixer")
    with frame("plan", 7.0, 7.2) as figure:
        _draw(figure, mixers, [run for run in runs if run.architecture.channels is None])
        try:
            save(figure, "Width and density of Mixers by their channels", [path])
        except OSError as error:
            raise UserError(f"--figure {path}: cannot be written: {error.strerror}") from None


def _draw(figure: Figure, mixers: Sequence[Run], others: Sequence[Run]) -> None:
    """Draw width and density over the channels, in two panels: a curve for each budget, a point for each shape."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    look = looks_of(run.config.model.name for run in (*mixers, *others))
    laws = list(dict.fromkeys(law_of(run) for run in mixers))
    channels = [float(run.architecture.channels or 0) for run in mixers]
    lowest = max(0.8, min([*channels, *(law.peak for law in laws)]) / 2)
    highest = max([*channels, *(law.peak for law in laws)]) * 2
    grid = [lowest * (highest / lowest) ** (i / 400) for i in range(401)]
    _draw_curves(upper, laws, grid, Law.width)
    _draw_curves(lower, laws, grid, Law.density)
    for law in laws if len(laws) <= 3 else []:
        _mark_peak(upper, lower, law)
    for axes, value in ((upper, _width_of), (lower, _density_of)):
        _draw_points(axes, mixers, value, look)
        _draw_without_channels(axes, others, value, look)
    _label_axes(figure, upper, lower)


def _width_of(run: Run) -> float:
    return run.architecture.width


def _density_of(run: Run) -> float:
    return run.architecture.density


def law_of(run: Run) -> Law:
    """Return the constraint that a Mixer's budget imposed, from the one target that its solved architecture has."""
    solved = run.architecture
    target = next(name for name in TARGETS if getattr(solved, name) is not None)
    budget, count = BUDGETS_AND_COUNTS[target]
    request = dataclasses.replace(request_of(run.config), budget=budget, count=count)
    token, channel = (own or solved.expansion for own in (request.token_expansion, request.channel_expansion))
    expansion = Expansion(exact(token), exact(channel), request.hidden)
    return Law(rule_of(request, expansion), getattr(solved, target))


def _draw_curves(
    axes: Axes, laws: Sequence[Law], grid: Sequence[float], quantity: Callable[[Law, float], float]
) -> None:
    for number, law in enumerate(laws):
        line, grey = LINE_STYLES[number % len(LINE_STYLES)], f"{0.25 + 0.05 * min(number, 8):.2f}"
        label = str(law) if len(laws) <= 6 else None
        axes.plot(grid, [quantity(law, c) for c in grid], line, color=grey, linewidth=1.6, label=label, zorder=1)


def _mark_peak(upper: Axes, lower: Axes, law: Law) -> None:
    """Mark the channels at which networks are widest and sparsest, by a vertical line through both panels."""
    for axes in (upper, lower):
        axes.axvline(law.peak, color="0.8", linewidth=0.9, zorder=0)
    style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (4, 0), "textcoords": "offset points"}
    lower.annotate("S = C" if law.is_square_at_peak else "widest", (law.peak, 0.95), fontsize=8, color="0.4", **style)


def _draw_points(axes: Axes, runs: Sequence[Run], value: Callable[[Run], float], look: Mapping[str, Look]) -> None:
    """Draw one point for each distinct shape, marked by family; coinciding points of several families stay visible."""
    models = list(dict.fromkeys(run.config.model.name for run in runs))
    for number, model in enumerate(models):
        alike = [run for run in runs if run.config.model.name == model]
        positions = sorted({(float(run.architecture.channels or 0), value(run)) for run in alike})
        axes.scatter(
            [channels for channels, _ in positions],
            [height for _, height in positions],
            100 - 70 * number / max(1, len(models) - 1) if len(models) > 1 else 60,
            marker=look[model].marker,
            facecolors="none" if number % 2 == 0 and len(models) > 1 else look[model].colour,
            edgecolors=look[model].colour,
            linewidths=1.6,
            label=model,
            zorder=3 + number,
        )


def _draw_without_channels(
    axes: Axes, runs: Sequence[Run], value: Callable[[Run], float], look: Mapping[str, Look]
) -> None:
    """Draw networks without channels at the right edge, where only their height has a meaning."""
    for number, model in enumerate(dict.fromkeys(run.config.model.name for run in runs)):
        heights = sorted({value(run) for run in runs if run.config.model.name == model})
        axes.update_datalim([(1.0, height) for height in heights], updatex=False)
        axes.scatter(
            [0.985] * len(heights),
            heights,
            transform=axes.get_yaxis_transform(),
            marker="<",
            s=55,
            facecolors=PAPER if number % 2 else look[model].colour,
            edgecolors=look[model].colour,
            label=f"{model} (no channels)",
            zorder=5,
        )


def _label_axes(figure: Figure, upper: Axes, lower: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axes in (upper, lower):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(ticked))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(ticked))
    upper.set_ylabel("effective width  m = S·C  (units)")
    lower.set_ylabel("density  p = Ω / (γ·m²)")
    lower.set_xlabel("channels  C")
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
