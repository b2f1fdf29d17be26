"""Draw figures in one style for report, analysis and plan: colours, frame, axes and saving.

``palette`` does not use matplotlib, since the report's page takes its colours there too; the other modules import
matplotlib only when they draw.
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
