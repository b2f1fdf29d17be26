"""``analyze cka``: how alike the hidden features of groups of runs are (Hayase & Karakida 2024, section 3.4).

One group is compared with all others of its width, layer by layer, beside the baselines that the similarity is read
against: the same networks untrained, two seeds of one network, and a dense MLP. The estimator is in ``similarity``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mixersweep.analysis.intervals import percentiles
from mixersweep.analysis.output import shown, tracked
from mixersweep.analysis.similarity import Comparison, Similarities, compare, similarities
from mixersweep.analysis.subjects import Subject, groups
from mixersweep.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def analyze(
    subjects: Sequence[Subject], reference: Sequence[Subject] | None, device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Build ``cka.json`` and the rows of its table.

    ``reference`` is compared with every other group of runs (``groups``) of the same width, or with all where none
    has it; None takes the first group. The document is the comparison with the highest CKA, with all ``comparisons``
    in it and, where the groups are one model at several densities, the ``optimum`` over them.
    """
    every = groups(subjects)
    mine = list(reference) if reference is not None else next(iter(every.values()))
    if reference is not None and len(of := _labels(every, mine)) > 1:
        raise UserError(f"--reference: takes one group of runs, which differ in their seeds alone, not {', '.join(of)}")
    others = {label: runs for label, runs in every.items() if not any(run in mine for run in runs)}
    if not others and len(mine) > 1:
        others = {next(iter(every)): mine}
    if not others:
        raise UserError(f"cka: one run ({mine[0].name}); it takes two, or two groups of runs")
    equal = {label: runs for label, runs in others.items() if _width(runs[0]) == _width(mine[0])}
    others = equal or others
    needed = list({id(run): run for run in [*mine, *(run for runs in others.values() for run in runs)]}.values())
    table = similarities(needed, device)
    dense = _dense(every, table)
    name = _labels(every, mine)[0]
    found = [
        _document(table, mine, runs, dense, name, label) for label, runs in tracked(list(others.items()), "cka: pairs")
    ]
    order = sorted(found, key=lambda one: -(one["diagonal_mean"] if one["diagonal_mean"] is not None else -math.inf))
    best = order[0]
    optimum, why = _optimum(table, mine, others)
    document = {**best, "optimum": optimum, "comparisons": found}
    if why is not None:
        document["reasons"] = {**best["reasons"], "optimum": why}
    rows = [
        {
            "reference": name,
            "other": one["groups"][1],
            "density": one["densities"][1],
            "diagonal_mean": one["diagonal_mean"],
            "interval": one["interval"],
            "off_diagonal_mean": one["off_diagonal_mean"],
            "untrained": _value(one["baselines"]["untrained"]),
            "seeds": _value(one["baselines"]["seeds"]),
            "dense": _value(one["baselines"]["dense"]),
            "pairs_of_runs": one["pairs_of_runs"],
        }
        for one in found
    ]
    return document, rows


def _labels(every: Mapping[str, list[Subject]], runs: Sequence[Subject]) -> list[str]:
    return [label for label, group in every.items() if any(run in group for run in runs)]


def _width(subject: Subject) -> int:
    return subject.directory.run.architecture.width


def _density(subject: Subject) -> float:
    return float(subject.directory.run.architecture.density)


def _value(brief: Mapping[str, Any] | None) -> float | None:
    return None if brief is None else brief["diagonal_mean"]


def _dense(every: Mapping[str, list[Subject]], table: Similarities) -> tuple[list[Subject] | None, str | None]:
    """The first group in the table with density 1, such as a dense MLP; else None, and why there is none."""
    there = {id(member.subject) for member in table.members}
    for runs in every.values():
        if _density(runs[0]) == 1 and id(runs[0]) in there:
            return runs, None
    return None, "no run here is dense: an mlp, or an sw_mlp at density=1, of the width of the others"


def _document(
    table: Similarities,
    mine: list[Subject],
    theirs: list[Subject],
    dense: tuple[list[Subject] | None, str | None],
    name: str,
    label: str,
) -> dict[str, Any]:
    """One comparison with its baselines, and the reason for each baseline that is null."""
    made = compare(table, mine, theirs)
    reasons: dict[str, str] = {}
    if made.diagonal_mean is None:
        sizes = " and ".join(str(len(layers)) for layers in made.layers)
        reasons["diagonal_mean"] = f"the networks have {sizes} layers"
    if made.interval is None:
        reasons["interval"] = reasons.get("diagonal_mean", "one pair of runs and one batch of images")
    untrained = compare(table, mine, theirs, trained=(False, False))
    seeds = None
    if len(mine) > 1:
        seeds = compare(table, mine, mine)
    else:
        reasons["seeds"] = f"one run of {name}: another seed of it is what it could be compared with"
    of_dense = None
    if dense[0] is not None:
        of_dense = compare(table, mine, dense[0])
    else:
        reasons["dense"] = str(dense[1])
    return {
        "runs": [[run.name for run in mine], [run.name for run in theirs]],
        "groups": [name, label],
        "densities": [_density(mine[0]), _density(theirs[0])],
        "layers": [list(layers) for layers in made.layers],
        "matrix": [[_finite(x) for x in row] for row in made.matrix],
        "diagonal_mean": made.diagonal_mean,
        "off_diagonal_mean": made.off_diagonal_mean,
        "interval": made.interval,
        "baselines": {
            "untrained": untrained.brief() if untrained.diagonal_mean is not None else None,
            "seeds": None if seeds is None else seeds.brief(),
            "dense": None if of_dense is None or of_dense.diagonal_mean is None else of_dense.brief(),
        },
        "reasons": reasons,
        "pairs_of_runs": "same seed" if made.paired else "all",
        "images": table.images,
        "batches": len(table.hsic),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _optimum(
    table: Similarities, mine: list[Subject], others: Mapping[str, list[Subject]]
) -> tuple[dict[str, Any] | None, str | None]:
    """The density at which CKA with the reference is highest, with its interval and both candidates.

    All densities are resampled with the same batches and seeds, so that noise they share cancels in differences.
    """
    sparse: dict[str, list[tuple[float, Comparison]]] = {}
    for runs in others.values():
        made = compare(table, mine, runs)
        if made.diagonals is not None:
            sparse.setdefault(runs[0].config.model.name, []).append((_density(runs[0]), made))
    model, curve = max(sparse.items(), key=lambda item: len(item[1]), default=("", []))
    if len(curve) < 3:
        return None, "fewer than three densities of one model"
    curve.sort(key=lambda point: point[0])
    densities = np.array([density for density, _ in curve])
    means = np.array([made.diagonal_mean for _, made in curve], dtype=np.float64)
    draws = np.stack([made.diagonals for _, made in curve if made.diagonals is not None])
    peaks = 1 / densities[draws.argmax(0)]
    best = int(means.argmax())
    found: dict[str, Any] = {
        "model": model,
        "density": float(densities[best]),
        "inverse_density": float(1 / densities[best]),
        "inverse_density_interval": percentiles(peaks),
        "diagonal_mean": float(means[best]),
        "candidates": {},
    }
    channels = mine[0].directory.run.architecture.channels
    for name, wanted in (("1/C", 1), ("1/(4C)", 4)) if channels else ():
        near = np.flatnonzero(np.isclose(densities, 1 / (wanted * (channels or 1)), rtol=0.05))
        if not len(near):
            found["candidates"][name] = None
            continue
        at = int(near[0])
        found["candidates"][name] = {
            "density": float(densities[at]),
            "diagonal_mean": float(means[at]),
            "best_minus_this": float(means[best] - means[at]),
            "best_minus_this_interval": percentiles(draws[best] - draws[at]),
        }
    return found, None


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw CKA against density as in Fig. 2(a), if there are several, and the matrices of up to three comparisons."""
    from mixersweep.figures import draw_panels

    found = document["comparisons"]
    chosen = [document]
    dense = [one for one in found if one["densities"][1] == 1]
    matched = [one for one in found if one["densities"][1] == one["densities"][0]]
    for one in (*matched, *dense):
        if all(one["groups"] != there["groups"] for there in chosen):
            chosen.append(one)
    panels: list[Any] = []
    curve = [one for one in found if one["diagonal_mean"] is not None and one["interval"] is not None]
    if len({one["densities"][1] for one in curve}) > 2:
        panels.append(lambda axes: _curve(axes, document, curve))
    panels += [_matrix_panel(one) for one in chosen[:3]]
    return draw_panels(out, "cka", f"CKA of hidden features with {document['groups'][0]}", panels)


def _curve(axes: Axes, document: Mapping[str, Any], curve: list[Mapping[str, Any]]) -> None:
    from mixersweep.figures import GREY, INK, band, log_axis, looks_of

    models = dict.fromkeys(one["groups"][1].split()[0] for one in curve)
    look = looks_of(models)
    for model in models:
        points = sorted(
            (one for one in curve if one["groups"][1].split()[0] == model), key=lambda one: -one["densities"][1]
        )
        x = [1 / one["densities"][1] for one in points]
        low, high = ([one["interval"][end] for one in points] for end in (0, 1))
        means = [one["diagonal_mean"] for one in points]
        band(axes, x, means, low, high, look[model], f"{model}: diagonal mean")
        if len(points) == 1:
            continue
        axes.plot(x, [one["off_diagonal_mean"] for one in points], color=look[model].colour, linewidth=1,
                  linestyle=":", label=f"{model}: off-diagonal mean")  # fmt: skip
        untrained: Any = [_value(one["baselines"]["untrained"]) for one in points]
        if None not in untrained:
            axes.plot(x, untrained, color=GREY, linewidth=1, marker="x", markersize=4, label=f"{model}: untrained")
    seeds = document["baselines"]["seeds"]
    if seeds is not None:
        axes.axhline(seeds["diagonal_mean"], color=INK, linewidth=1, linestyle=(0, (4, 2.5)))
        where = ("axes fraction", "data")
        axes.annotate(
            "two seeds of the reference", (0.02, seeds["diagonal_mean"]), xycoords=where, va="bottom", fontsize=8
        )
    axes.set_ylim(
        max(-0.02, axes.get_ylim()[0]), min(1.02, axes.get_ylim()[1])
    )  # the range of CKA; an interval may be wider
    densities = [1 / one["densities"][1] for one in curve]
    log_axis(axes, densities)
    axes.set_xlabel("1/p, inverse density of the weights compared with")
    axes.set_ylabel("CKA")
    axes.set_title("means, with 95% intervals", fontsize=9, loc="left")


def _matrix_panel(one: Mapping[str, Any]) -> Any:
    def panel(axes: Axes) -> None:
        values = np.array([[np.nan if x is None else x for x in row] for row in one["matrix"]])
        axes.grid(False)
        axes.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if max(values.shape) <= 12 and np.isfinite(value):
                colour = "white" if value < 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        for which, size in ((axes.set_xticks, values.shape[1]), (axes.set_yticks, values.shape[0])):
            which(range(size), [str(number + 1) for number in range(size)])
        labels = [
            f"layer of {name.split()[0]}, 1/p = {1 / density:.3g}"
            for name, density in zip(one["groups"], one["densities"], strict=True)
        ]
        axes.set_ylabel(labels[0])
        axes.set_xlabel(labels[1])
        mean = shown(one["diagonal_mean"]) if one["diagonal_mean"] is not None else "none"
        axes.set_title(f"diagonal mean {mean}", fontsize=9, loc="left")

    return panel
