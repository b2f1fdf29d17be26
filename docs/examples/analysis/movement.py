"""``analyze movement``: how far training moved the weights of each layer, |W - W₀| / |W₀| in the Frobenius norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import Subject, groups, mixing_maps


def analyze(subjects: Sequence[Subject]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document of ``movement.json``, and the rows of its table: a row for each group of runs and layer."""
    rows = []
    for group, runs in groups(subjects).items():  # the runs of a group differ in their seeds alone
        moved: dict[str, list[float]] = {}
        for run in tracked(runs, "movement"):
            first, last = mixing_maps(run.network(epoch=0)), mixing_maps(run.network())
            for layer in first:
                start, end = first[layer].to_dense(), last[layer].to_dense()
                moved.setdefault(layer, []).append(float((end - start).norm() / start.norm()))
        rows += [
            {"group": group, "layer": layer, "runs": len(runs), "moved": float(np.mean(values))}
            for layer, values in moved.items()
        ]
    return {"layers": rows}, rows


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """``movement.svg`` and ``movement.png``: a line for each group, over the layers."""
    from mixersweep.figures import counted, draw_panels, looks_of

    rows = document["layers"]
    looks = looks_of(row["group"] for row in rows)

    def panel(axes: Any) -> None:
        for group, look in looks.items():
            values = [row["moved"] for row in rows if row["group"] == group]
            axes.plot(range(1, len(values) + 1), values, label=group, **look.line())
        counted(axes)
        axes.set_xlabel("mixing layer")
        axes.set_ylabel("|W - W₀| / |W₀|")

    return draw_panels(out, "movement", "How far training moved the weights", [panel])
