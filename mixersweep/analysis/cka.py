"""``analyze cka``: how alike the hidden features of two groups of runs are (Hayase & Karakida 2024, section 3.4).

Linear CKA with the unbiased estimator of HSIC over minibatches (Song et al. 2012; Nguyen et al. 2021, section 3.1):
for features X, Y of n images, with K = X Xᵀ and L = Y Yᵀ without their diagonals,

    HSIC₁(K, L) = ( tr(KL) + 1ᵀK1·1ᵀL1 / ((n-1)(n-2)) - 2·1ᵀKL1 / (n-2) ) / (n(n-3)),
    CKA = Σ_b HSIC₁(K_b, L_b) / sqrt( Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b) ),

numerators and denominators summed over the batches b. HSIC₁ is an inner product of Gram matrices that are centred so
that their rows sum to 0 without their diagonals (Székely & Rizzo 2014), so that all pairs of all layers of all runs
are one matrix product a batch. Images are the test set's, without augmentation; features those just before a skip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixersweep.analysis.intervals import Interval, percentiles, student_scale
from mixersweep.analysis.output import shown, tracked
from mixersweep.analysis.subjects import Features, Subject, groups, same_data
from mixersweep.data.splits import open_splits
from mixersweep.errors import UserError
from mixersweep.seeds import derive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH, FEWEST = 256, 4
"""Images of a batch; the estimator needs four."""

DRAWS = 2000
MOST_FEATURES = 4000
"""Layers of all runs together: the table of all their pairs has this many rows and columns a batch."""

Floats = NDArray[np.float64]


def centred_gram(features: Tensor) -> Tensor:
    """(n, features) to the flat (n²,) float64 Gram matrix of which inner products are n(n-3)·HSIC₁."""
    x = features.double()
    x = x - x.mean(0)  # changes nothing but the rounding
    n = len(x)
    gram = (x @ x.t()).fill_diagonal_(0)
    rows = gram.sum(0) / (n - 2)
    centred = gram - rows[:, None] - rows + gram.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0).flatten()


def products(features: Sequence[Tensor]) -> Tensor:
    """HSIC₁ of all pairs of F feature matrices (n, any): (F, F), float64; n is at least 4."""
    n = len(features[0])
    grams = torch.stack([centred_gram(x) for x in features])
    return grams @ grams.t() / (n * (n - 3))


def cka(sums: Floats, one: Sequence[int], other: Sequence[int]) -> Floats:
    """CKA (len(one), len(other)) of layers out of summed HSIC₁ (..., F, F); a layer that is constant has NaN."""
    scale = np.sqrt(np.maximum(np.diagonal(sums, axis1=-2, axis2=-1), 0))
    part = sums[..., one, :][..., other]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = part / (scale[..., one][..., :, None] * scale[..., other][..., None, :])
    return found


@dataclass(frozen=True)
class Member:
    """One network of the table: whose, trained or not, and which columns of the table are its layers."""

    subject: Subject
    trained: bool
    layers: tuple[str, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Similarities:
    """``hsic`` (batches, F, F) of all layers of all members."""

    members: list[Member]
    hsic: Floats
    images: int

    def of(self, subject: Subject, *, trained: bool = True) -> Member:
        """The member of a run."""
        return next(m for m in self.members if m.subject is subject and m.trained == trained)


def similarities(subjects: Sequence[Subject], device: torch.device, *, untrained: bool = True) -> Similarities:
    """The table of these runs at the end of training and, with ``untrained``, as their seeds drew them."""
    same_data(subjects)
    plan = [(subject, trained) for trained in (True, False) if trained or untrained for subject in subjects]
    networks: list[tuple[Subject, bool, nn.Module]] = []
    for subject, trained in tracked(plan, "cka: networks"):
        networks.append((subject, trained, subject.network(None if trained else 0, device)))
    members: list[Member] = []
    every = [Features(network) for _, _, network in networks]
    for (subject, trained, _), features in zip(networks, every, strict=True):
        first = members[-1].columns[-1] + 1 if members else 0
        columns = tuple(range(first, first + len(features.layers)))
        members.append(Member(subject, trained, tuple(features.layers), columns))
    total = members[-1].columns[-1] + 1
    if total > MOST_FEATURES:
        raise UserError(
            f"cka: {total:,} layers in all; up to {MOST_FEATURES:,} are compared at once, say fewer: --where"
        )
    found, images = [], 0
    batches = list(_test_batches(subjects[0], device))
    for x in tracked(batches, "cka: batches"):
        grams: list[Tensor] = []
        for features in every:
            with features:
                grams += [centred_gram(layer) for layer in features.of(x)]
        stacked = torch.stack(grams)
        found.append((stacked @ stacked.t() / (len(x) * (len(x) - 3))).cpu().numpy())
        images += len(x)
    return Similarities(members, np.stack(found), images)


def _test_batches(subject: Subject, device: torch.device) -> Iterator[Tensor]:
    splits = open_splits(subject.config, device)
    try:
        for images, _ in splits.test.batches(BATCH, None, None):
            if len(images) >= FEWEST:
                yield images
    finally:
        splits.close()


@dataclass(frozen=True)
class Comparison:
    """CKA of two groups of runs: ``matrix`` (layers, layers) is the mean over pairs of runs.

    Pairs are of runs of equal seed where both groups have the same seeds, else all. ``diagonals`` (draws,) are
    bootstrap draws of the diagonal mean, None with one pair of runs and one batch.
    """

    one: list[Subject]
    other: list[Subject]
    layers: tuple[tuple[str, ...], tuple[str, ...]]
    matrix: Floats
    paired: bool
    diagonal_mean: float | None
    off_diagonal_mean: float | None
    diagonals: Floats | None

    @property
    def interval(self) -> Interval | None:
        """95%, of the diagonal mean, over seeds and batches of images; over batches alone where there is one pair."""
        return None if self.diagonals is None else percentiles(self.diagonals)

    def brief(self) -> dict[str, Any]:
        """Without the matrix."""
        return {
            "diagonal_mean": self.diagonal_mean,
            "off_diagonal_mean": self.off_diagonal_mean,
            "interval": self.interval,
        }


def compare(
    table: Similarities,
    one: Sequence[Subject],
    other: Sequence[Subject],
    *,
    trained: tuple[bool, bool] = (True, True),
    draws: int = DRAWS,
) -> Comparison:
    """Two groups of runs of the table, which may be the same group: then a run is not compared with itself.

    The diagonal means are of networks with as many layers; else they are None.
    """
    mine = [table.of(subject, trained=trained[0]) for subject in one]
    theirs = [table.of(subject, trained=trained[1]) for subject in other]
    within = [m.columns for m in mine] == [m.columns for m in theirs]
    seeds = [[m.subject.seed for m in group] for group in (mine, theirs)]
    paired = not within and len(mine) > 1 and seeds[0] == seeds[1] and len(set(seeds[0])) == len(mine)
    if within and len(mine) > 1:
        pairs = [(i, j) for i in range(len(mine)) for j in range(len(mine)) if i != j]
    elif paired:
        pairs = [(i, i) for i in range(len(mine))]
    else:
        pairs = [(i, j) for i in range(len(mine)) for j in range(len(theirs))]

    def matrices(sums: Floats) -> Floats:
        return np.stack([cka(sums, mine[i].columns, theirs[j].columns) for i, j in pairs], axis=-3)

    every = matrices(table.hsic.sum(0))
    matrix: Floats = every.mean(0)
    layers = (mine[0].layers, theirs[0].layers)
    made = (list(one), list(other), layers, matrix, paired)
    if matrix.shape[0] != matrix.shape[1]:
        return Comparison(*made, None, None, None)
    size = len(matrix)
    diagonal = float(np.trace(matrix)) / size
    off = None if size == 1 else float(matrix.sum() - np.trace(matrix)) / (size * (size - 1))
    per_pair = np.trace(every, axis1=1, axis2=2) / size
    deviations = _seed_deviations(per_pair, pairs, len(mine), len(theirs), within=within, paired=paired, draws=draws)
    batches = len(table.hsic)
    if batches > 1:
        deviations = np.zeros(draws) if deviations is None else deviations
        generator = np.random.default_rng(derive(0, "cka", "batches", batches))
        counts = generator.multinomial(batches, np.full(batches, 1 / batches), size=draws)
        scale = student_scale(generator, batches, draws)
        kept = sorted({column for member in (*mine, *theirs) for column in member.columns})
        place = {column: number for number, column in enumerate(kept)}
        flat = table.hsic[:, kept][:, :, kept].reshape(batches, -1)
        for first in range(0, draws, 250):
            some = slice(first, first + 250)
            sums = (counts[some] @ flat).reshape(-1, len(kept), len(kept))
            drawn = np.zeros(len(sums))
            for i, j in pairs:
                a, b = ([place[c] for c in member.columns] for member in (mine[i], theirs[j]))
                drawn += np.trace(cka(sums, a, b), axis1=1, axis2=2) / size / len(pairs)
            deviations[some] += (drawn - diagonal) * scale[some]
    return Comparison(*made, diagonal, off, None if deviations is None else diagonal + deviations)


def _seed_deviations(
    values: Floats, pairs: list[tuple[int, int]], one: int, other: int, *, within: bool, paired: bool, draws: int
) -> Floats | None:
    """How the mean over pairs moves when the runs of each group are drawn anew; None with one run a group."""
    grid = np.full((one, other), np.nan)
    for (i, j), value in zip(pairs, values, strict=True):
        grid[i, j] = value
    mean = float(values.mean())
    if paired:
        influences = [values - mean]
    elif within:
        influences = [2 * (np.nanmean(grid, axis=1) - mean)] if one > 1 else []
    else:
        influences = [np.nanmean(grid, axis=axis) - mean for axis, n in ((1, one), (0, other)) if n > 1]
    if not influences:
        return None
    found = np.zeros(draws)
    for number, influence in enumerate(influences):
        n = len(influence)
        generator = np.random.default_rng(derive(0, "cka", "seeds", number, n))
        counts = generator.multinomial(n, np.full(n, 1 / n), size=draws)
        found += (counts - 1) @ influence / n * student_scale(generator, n, draws)
    return found


def analyze(
    subjects: Sequence[Subject], reference: Sequence[Subject] | None, device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``cka.json`` and the rows of its table.

    ``reference`` is compared with every other group of runs (``groups``) of the same width, or with all where none
    has it; None takes the first group. The document is the comparison that is the most alike, with all ``comparisons``
    behind it and, where the groups are one model at several densities, the ``optimum`` over them.
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
    """The runs that have a dense MLP's weights, among those of the table."""
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
    """One comparison with its baselines, and why those that are null are."""
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
    """The density at which the others are the most like the reference, with its interval and both candidates.

    The draws behind all densities are the same batches and seeds, so that their differences keep what they share.
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
    """Fig. 2(a) where there are densities to draw it over, and the matrices of up to three comparisons."""
    from mixersweep.analysis.drawing import figure

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
    return figure(out, "cka", f"CKA of hidden features with {document['groups'][0]}", panels, high=4.0)


def _curve(axes: Axes, document: Mapping[str, Any], curve: list[Mapping[str, Any]]) -> None:
    from mixersweep.analysis.drawing import band, log_axis, looks
    from mixersweep.report.style import GREY, INK

    models = dict.fromkeys(one["groups"][1].split()[0] for one in curve)
    look = looks([(model, model) for model in models])
    for model in models:
        points = sorted(
            (one for one in curve if one["groups"][1].split()[0] == model), key=lambda one: -one["densities"][1]
        )
        x = [1 / one["densities"][1] for one in points]
        low, high = ([one["interval"][end] for one in points] for end in (0, 1))
        if len(points) == 1:
            middle = points[0]["diagonal_mean"]
            error = [[middle - low[0]], [high[0] - middle]]
            style = {**look[model].line(), "linestyle": "none"}
            axes.errorbar(x, [middle], error, label=f"{model}: diagonal mean", capsize=3, **style)
            continue
        means = [one["diagonal_mean"] for one in points]
        band(axes, x, means, low, high, look[model], f"{model}: diagonal mean")
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
        axes.set_ylabel(f"layer of {one['groups'][0]}", fontsize=8)
        axes.set_xlabel(f"layer of {one['groups'][1]}", fontsize=8)
        mean = shown(one["diagonal_mean"]) if one["diagonal_mean"] is not None else "none"
        axes.set_title(f"diagonal mean {mean}", fontsize=9, loc="left")

    return panel
