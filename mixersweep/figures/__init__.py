"""How a figure is drawn, for report, analysis and plan alike: colours, frame, axes, and how it comes to disk.

``palette`` knows no matplotlib, so that the page takes its colours there too; the others import it when they draw.
"""

from mixersweep.figures.axes import band, counted, framed, log_axis, scaled, ticked
from mixersweep.figures.frame import draw_panels, frame, save
from mixersweep.figures.palette import FAINT, GREY, INK, PAPER, Look, looks, looks_of

__all__ = [
    "FAINT",
    "GREY",
    "INK",
    "PAPER",
    "Look",
    "band",
    "counted",
    "draw_panels",
    "frame",
    "framed",
    "log_axis",
    "looks",
    "looks_of",
    "save",
    "scaled",
    "ticked",
]
