"""Create figures in one style, with panels side by side, and save them.

Figures are created without pyplot, so no global state changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep.errors import UserError
from mixersweep.figures.palette import FAINT, INK, PAPER
from mixersweep.runs.files import open_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = Callable[["Axes"], None]

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
}

UNDATED = {"svg": "Date", "pdf": "CreationDate"}
"""The metadata, by format, that would make two files of the same numbers differ."""


@contextmanager
def frame(name: str, wide: float, high: float) -> Iterator[Figure]:
    """Create an empty figure in the common style, to be drawn and saved inside the block; sizes are in inches.

    ``name`` makes the identifiers inside an SVG the same each time.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        yield Figure(figsize=(wide, high), layout="constrained")


def save(drawing: Figure, title: str, paths: Sequence[Path], dpi: int = 200) -> None:
    """Write a figure to each path, in the format of its suffix; the same numbers give the same bytes.

    A file appears completely or not at all. The layout is computed once for all formats. Raises ``OSError`` where a
    file cannot be written.
    """
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    for path in paths:
        kind = path.suffix.lstrip(".").lower()
        metadata: dict[str, Any] = {"Title": title} | ({UNDATED[kind]: None} if kind in UNDATED else {})
        with open_atomic(path) as file:
            drawing.savefig(file, format=kind, dpi=dpi, metadata=metadata)


def draw_panels(
    out: Path,
    name: str,
    title: str,
    drawn: Sequence[Panel],
    *,
    wide: float = 4.2,
    high: float = 3.6,
    columns: int = 3,
    one_legend: bool = True,
) -> list[Path]:
    """Draw panels in a grid of at most ``columns`` columns and write ``name.svg`` and ``name.png`` into ``out``.

    ``wide`` and ``high`` are the inches of one panel. There is one legend for all panels, or one in each. Returns the
    paths; raises ``UserError`` where they cannot be written.
    """
    rows = -(-len(drawn) // columns)
    across = -(-len(drawn) // rows)
    with frame(name, wide * across + 0.4, high * rows + 0.7) as drawing:
        every = drawing.subplots(rows, across, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for axes, panel in zip(every, drawn, strict=False):
            panel(axes)
            labelled = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
            if one_legend:
                handles = {**labelled, **handles}
            elif labelled:
                axes.legend(fontsize=8)
        for axes in every[len(drawn) :]:
            axes.set_visible(False)
        if handles:
            drawing.legend(
                list(handles.values()),
                list(handles),
                loc="outside lower center",
                ncols=max(1, min(len(handles), int(2.2 * across * wide / 4.6) or 1)),
                handlelength=2.6,
                columnspacing=1.4,
            )
        drawing.suptitle(title, fontsize=10, x=0.01, ha="left")
        paths = [out / f"{name}.{kind}" for kind in ("svg", "png")]
        try:
            save(drawing, title, paths, dpi=150)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return paths
