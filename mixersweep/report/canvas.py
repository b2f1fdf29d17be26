"""A figure of a report: one panel, its own lines in a legend above, published ones in one below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixersweep.figures import frame, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Figure:
    """One figure, on disk and as matplotlib has it: what it shows, and the same in words for who cannot see it.

    ``paths`` are those of its SVG and PNG, none where it was not written.
    """

    name: str
    title: str
    caption: str
    paths: dict[str, Path]
    drawing: Drawing = field(repr=False, compare=False)


def saved(name: str, title: str, out: Path | None, make: Callable[[Axes], str]) -> Figure:
    """Draw with ``make`` and, where there is an ``out``, write ``name.svg`` and ``name.png`` there, the same bytes for
    the same numbers.
    """
    with frame(name, 6.4, 4.6) as drawing:
        axes = drawing.add_subplot()
        caption = make(axes)
        rows = _legends(drawing, axes)
        drawing.set_figheight(4.2 + 0.19 * rows)
        axes.set_title(title, fontsize=9, loc="left")
        paths = {} if out is None else {kind: out / f"{name}.{kind}" for kind in ("svg", "png")}
        save(drawing, title, list(paths.values()))
    return Figure(name, title, caption, paths, drawing)


def _legends(drawing: Drawing, axes: Axes) -> int:
    """Own lines above the axes, published ones below; returns how many rows they take."""
    handles, labels = axes.get_legend_handles_labels()
    rows = 0
    places: tuple[tuple[Literal["outside upper left", "outside lower left"], bool], ...]
    places = (("outside upper left", False), ("outside lower left", True))
    for place, published_too in places:
        chosen = [number for number, label in enumerate(labels) if label.startswith("published ") == published_too]
        if not chosen:
            continue
        columns = 2 if max(len(labels[number]) for number in chosen) > 18 else 3
        style: dict[str, Any] = {"handlelength": 3.6, "columnspacing": 1.4, "fontsize": 7.5 if published_too else 9}
        names = [labels[number] for number in chosen]
        drawing.legend([handles[number] for number in chosen], names, loc=place, ncols=columns, **style)
        rows += -(-len(chosen) // columns)
    return rows
