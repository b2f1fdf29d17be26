"""The similarity of hidden features, by linear CKA: the estimator behind ``analyze cka`` (``cka``).

Linear CKA with the unbiased estimator of HSIC over minibatches (Song et al. 2012; Nguyen et al. 2021, section 3.1):
for features X, Y of n images, with K = X Xᵀ and L = Y Yᵀ without their diagonals,

    HSIC₁(K, L) = ( tr(KL) + 1ᵀK1·1ᵀL1 / ((n-1)(n-2)) - 2·1ᵀKL1 / (n-2) ) / (n(n-3)),
    CKA = Σ_b HSIC₁(K_b, L_b) / sqrt( Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b) ),

numerators and denominators summed over the batches b. HSIC₁ is an inner product of Gram matrices that are centred so
that their rows sum to 0 without the diagonal (Székely & Rizzo 2014). So all pairs of all layers of all runs take one
matrix product per batch. Images are those of the test set, without augmentation; features are those just before a skip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixersweep.analysis.intervals import Interval, percentiles, student_scale
from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import Features, Subject, same_data
from mixersweep.data.splits import open_splits
from mixersweep.errors import UserError
from mixersweep.seeds import derive

BATCH, FEWEST = 256, 4
"""The images of a batch, and the fewest that the estimator allows."""

DRAWS = 2000
MOST_FEATURES = 4000
"""The most layers of all runs together; for each batch there is an HSIC matrix of all their pairs."""

Floats = NDArray[np.float64]


def centred_gram(features: Tensor) -> Tensor:
    """The centred Gram matrix of features (n, features), flat (n²,) in float64; inner products are n(n-3)·HSIC₁."""
    x = features.double()
    x = x - x.mean(0)  # reduces rounding errors, and changes nothing else
    n = len(x)
    gram = (x @ x.t()).fill_diagonal_(0)
    rows = gram.sum(0) / (n - 2)
    centred = gram - rows[:, None] - rows + gram.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0).flatten()


def products(features: Iterable[Tensor]) -> Tensor:
    """HSIC₁ (F, F) in float64 of all pairs of F feature matrices (n, any); n is at least 4."""
    grams = torch.stack([centred_gram(x) for x in features])
    n = math.isqrt(grams.shape[1])
    return grams @ grams.t() / (n * (n - 3))


def cka(sums: Floats, one: Sequence[int], other: Sequence[int]) -> Floats:
    """CKA (..., len(one), len(other)) between layers, from summed HSIC₁ (..., F, F); NaN for a constant layer."""
    scale = np.sqrt(np.maximum(np.diagonal(sums, axis1=-2, axis2=-1), 0))
    part = sums[..., one, :][..., other]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = part / (scale[..., one][..., :, None] * scale[..., other][..., None, :])
    return found


@dataclass(frozen=True)
class Member:
    """One network: the run it belongs to, whether it is trained, and the rows of the HSIC matrix of its layers."""

    subject: Subject
    trained: bool
    layers: tuple[str, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Similarities:
    """HSIC₁ of all pairs of layers of all members: ``hsic`` (batches, F, F), from so many ``images``."""

    members: list[Member]
    hsic: Floats
    images: int

    def of(self, subject: Subject, *, trained: bool = True) -> Member:
        """The member of a run, trained or at initialisation."""
        return next(m for m in self.members if m.subject is subject and m.trained == trained)


def similarities(subjects: Sequence[Subject], device: torch.device, *, untrained: bool = True) -> Similarities:
    """Compute the HSIC matrices of runs at the end of training and, with ``untrained``, also at initialisation.

    Raises ``UserError`` for runs on different data, and for more than ``MOST_FEATURES`` layers in all.
    """
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
        found.append(products(_hidden(every, x)).cpu().numpy())
        images += len(x)
    return Similarities(members, np.stack(found), images)


def _hidden(every: Sequence[Features], images: Tensor) -> Iterator[Tensor]:
    """Yield the hidden features of all networks, keeping those of one network at a time."""
    for features in every:
        with features:
            yield from features.of(images)


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
    """CKA between two groups of runs: ``matrix`` (layers, layers) is the mean over pairs of runs.

    Pairs have equal seeds where both groups have the same seeds (``paired``), else they are all pairs. ``diagonals``
    (draws,) are bootstrap draws of the diagonal mean, None for one pair of runs and one batch. The diagonal means are
    None where the numbers of layers differ.
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
        """The 95% interval of the diagonal mean, over seeds and batches of images; over batches alone for one pair."""
        return None if self.diagonals is None else percentiles(self.diagonals)

    def brief(self) -> dict[str, Any]:
        """The means and the interval, without the matrix."""
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
    """Compare two groups of runs; in a group compared with itself, no run is compared with itself.

    ``trained`` says for each group whether its networks are the trained ones or those at initialisation.
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
        index = {column: number for number, column in enumerate(kept)}
        flat = table.hsic[:, kept][:, :, kept].reshape(batches, -1)
        for first in range(0, draws, 250):
            some = slice(first, first + 250)
            sums = (counts[some] @ flat).reshape(-1, len(kept), len(kept))
            drawn = np.zeros(len(sums))
            for i, j in pairs:
                a, b = ([index[c] for c in member.columns] for member in (mine[i], theirs[j]))
                drawn += np.trace(cka(sums, a, b), axis1=1, axis2=2) / size / len(pairs)
            deviations[some] += (drawn - diagonal) * scale[some]
    return Comparison(*made, diagonal, off, None if deviations is None else diagonal + deviations)


def _seed_deviations(
    values: Floats, pairs: list[tuple[int, int]], one: int, other: int, *, within: bool, paired: bool, draws: int
) -> Floats | None:
    """Draws (draws,) of the deviation of the mean over pairs when runs are resampled; None for one run per group."""
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
