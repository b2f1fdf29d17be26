"""The colours and markers of figures and page: each model looks the same in all of them.

The colours are those of Okabe & Ito (2008), which people with any colour vision can tell apart; they also differ in
lightness, so that lines stay distinct in grey. Dashed lines are reserved for published curves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mixersweep.families import look_of

INK, FAINT, PAPER = "#1a1a1a", "#c9c9c9", "#ffffff"
"""Text and axes, grid, background."""

LIGHT = {
    "paper": PAPER,
    "ink": INK,
    "soft": "#5a5a5a",
    "line": "#d9d9d9",
    "tint": "#f4f5f7",
    "accent": "#005a8f",
    "better": "#005a8f",
    "worse": "#a84300",
}
DARK = {
    "paper": "#14171a",
    "ink": "#e8e6e3",
    "soft": "#a8a8a8",
    "line": "#3a3f44",
    "tint": "#1e2327",
    "accent": "#7cc4f5",
    "better": "#7cc4f5",
    "worse": "#ff9d5c",
}
"""The colours of the page in the light and dark scheme; text is readable on both ``paper`` and ``tint``."""

DARKENED = {INK: DARK["ink"], PAPER: DARK["paper"], FAINT: "#4a5056"}
"""The colours that replace a figure's own on a dark page."""

BLUE, ORANGE, GREEN, PINK, SKY, GOLD, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#777777"
VIOLET = "#8c6bb1"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, GOLD, VIOLET, GREY)
"""The colours of the page for anything other than models."""

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
"""The names of dashes, and above of colours, that families use for their looks (``families.base``)."""

_COLOURS = (SKY, GOLD, PINK, GREY, BLUE, ORANGE, GREEN)
_SHAPES: tuple[tuple[str, Dash], ...] = (("v", LONG), ("<", DOTS), (">", "-"), ("d", LONG), ("p", "-"), ("H", DOTS))
SPARE = [(_COLOURS[number % len(_COLOURS)], *_SHAPES[number % len(_SHAPES)]) for number in range(42)]
"""The looks of further variants: all pairs of the two lists above, neighbours differing in colour and in shape."""


@dataclass(frozen=True)
class Look:
    """The look of one line: colour, marker, and dashes as matplotlib takes them."""

    colour: str
    marker: str
    dash: Dash

    def line(self, hollow: bool = False, published: bool = False) -> dict[str, Any]:
        """Keyword arguments for matplotlib's ``plot``; ``hollow`` markers are for the wide branch of a Mixer."""
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
    """Assign a look to each (label, model): a model's own to its first variant, spare ones to further variants."""
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


def looks_of(models: Iterable[str]) -> dict[str, Look]:
    """Assign a look to each model name."""
    return looks([(model, model) for model in dict.fromkeys(models)])


SHAPES = {
    "o": "M-5,0A5,5 0 1,0 5,0A5,5 0 1,0 -5,0Z",
    "s": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "^": "M0,-5.6L5.4,4.2H-5.4Z",
    "D": "M0,-6L6,0L0,6L-6,0Z",
    "v": "M0,5.6L5.4,-4.2H-5.4Z",
    "P": "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "<": "M-6,0L4,-5.4V5.4Z",
    ">": "M6,0L-4,-5.4V5.4Z",
    "X": "M-4.2,-5.7L0,-1.5L4.2,-5.7L5.7,-4.2L1.5,0L5.7,4.2L4.2,5.7L0,1.5L-4.2,5.7L-5.7,4.2L-1.5,0L-5.7,-4.2Z",
    "d": "M0,-6L3.6,0L0,6L-3.6,0Z",
    "p": "M0,-6L5.7,-1.9L3.5,4.9L-3.5,4.9L-5.7,-1.9Z",
    "h": "M0,-6L5.2,-3L5.2,3L0,6L-5.2,3L-5.2,-3Z",
    "H": "M6,0L3,5.2L-3,5.2L-6,0L-3,-5.2L3,-5.2Z",
    "*": "M0,-6.8L1.6,-2.3L6.5,-2.1L2.7,0.9L4,5.5L0,2.8L-4,5.5L-2.7,0.9L-6.5,-2.1L-1.6,-2.3Z",
}
"""Each marker as an SVG path, for the page's script."""


def css() -> str:
    """The colours of the page as CSS custom properties; printed pages are always light."""
    light, dark = (" ".join(f"--{name}: {colour};" for name, colour in own.items()) for own in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
