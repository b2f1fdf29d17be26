"""How a line looks: one colour, marker and dash a model, the same in every figure, told apart in grey as well.

Colours are Okabe and Ito's (2008), chosen so that people with any colour vision tell them apart, and of different
lightness. Dashed lines are left to published curves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mixersweep.families import look_of

INK, FAINT, PAPER = "#1a1a1a", "#c9c9c9", "#ffffff"
"""Text and axes, grid, background; the page replaces them where it is dark."""

BLUE, ORANGE, GREEN, PINK, SKY, GOLD, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#777777"
Dash = str | tuple[int, tuple[float, ...]]
LONG: Dash = (0, (8, 1.5, 1.5, 1.5))
DOTS: Dash = (0, (1.2, 1.4))
PUBLISHED: Dash = (0, (4, 2.5))

COLOURS: dict[str, str] = {
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "pink": PINK,
    "sky": SKY,
    "gold": GOLD,
    "grey": GREY,
}
DASHES: dict[str, Dash] = {"solid": "-", "long": LONG, "dots": DOTS}
"""What the families' looks are said in (``families.base``)."""

_COLOURS = (SKY, GOLD, PINK, GREY, BLUE, ORANGE, GREEN)
_SHAPES: tuple[tuple[str, Dash], ...] = (("v", LONG), ("<", DOTS), (">", "-"), ("d", LONG), ("p", "-"), ("H", DOTS))
SPARE = [(_COLOURS[number % len(_COLOURS)], *_SHAPES[number % len(_SHAPES)]) for number in range(42)]
"""All of both, each differing from the one before it in colour and in shape."""


@dataclass(frozen=True)
class Look:
    """Of one line."""

    colour: str
    marker: str
    dash: Dash

    def line(self, hollow: bool = False, published: bool = False) -> dict[str, Any]:
        """Arguments of matplotlib's ``plot``; ``hollow`` marks the wide branch of a Mixer."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": PUBLISHED if published else self.dash,
            "linewidth": 1.1 if published else 1.8,
            "markersize": 4 if published else 6.5,
            "markerfacecolor": PAPER if hollow or published else self.colour,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.2,
            "alpha": 0.8 if published else 1.0,
        }


def looks(variants: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """The look of each (label, model): a model's own for its first variant, spare ones for further variants."""
    found: dict[str, Look] = {}
    spare = iter(SPARE * 100)
    taken: set[str] = set()
    for label, model in variants:
        own = None if model in taken else look_of(model)
        if own is not None:
            found[label] = Look(COLOURS[own.colour], own.marker, DASHES[own.dash])
        else:
            found[label] = Look(*next(spare))
        taken.add(model)
    return found
