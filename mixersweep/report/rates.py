"""How the learning rate of each cell was found, read from its runs: whatever searched, the directories say what it saw.

A rate counts as searched where at least two seeds ran at two rates and more, for as many epochs as the compared runs.
The best of them is judged as the search does: by mean validation accuracy, where a diverged run counts as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]

SEEDS = 2
"""A choice takes at least so many seeds."""


@dataclass(frozen=True)
class Rates:
    """The rates of one cell: the one that is compared, and the curve that it was chosen from.

    ``tried`` holds the validation accuracies of the seeds that chose, by rate, None where a run diverged.
    ``on_reported`` is how many rates the reported seeds themselves were a choice of: 1 where others chose.
    ``diverged`` of the compared rate's ``runs`` left no result.
    """

    compared: float
    tried: dict[float, tuple[float | None, ...]]
    on_reported: int = 1
    diverged: int = 0
    runs: int = 0

    @property
    def searched(self) -> bool:
        """Whether the rate was a choice of several."""
        return len(self.tried) > 1

    @property
    def means(self) -> dict[float, float]:
        """Mean validation accuracy by rate; a diverged run counts as 0."""
        return {rate: float(np.mean([a or 0.0 for a in seen])) for rate, seen in sorted(self.tried.items())}

    @property
    def edge(self) -> str | None:
        """``lowest`` or ``highest`` where the best rate has no worse one beyond it."""
        means = self.means
        if len(means) < 2:
            return None
        best = max(means, key=lambda rate: (means[rate], -rate))
        return "lowest" if best == min(means) else "highest" if best == max(means) else None

    @property
    def lost(self) -> float:
        """The share of the compared rate's runs that diverged."""
        return self.diverged / self.runs if self.runs else 0.0


def rates_of(
    tried: Mapping[float, Sequence[Row]],
    diverged: Iterable[Row],
    compared: float,
    reported: Mapping[float, Sequence[Row]],
    chose: set[str],
    seed_of: Callable[[Row], str],
) -> Rates:
    """The rates of a cell, from its completed runs by rate (``tried``) and those that ``diverged``.

    ``reported`` are those of ``tried`` whose seeds chose nothing, ``chose`` the seeds that did, everywhere.
    """
    seen: dict[float, dict[str, float | None]] = {
        rate: {seed_of(row): row["validation_accuracy"] for row in runs if row["validation_accuracy"] is not None}
        for rate, runs in tried.items()
    }
    diverged = list(diverged)
    for row in diverged:
        seen.setdefault(row["optim.lr"], {}).setdefault(seed_of(row), None)
    counts = Counter(seed for seeds in seen.values() for seed in seeds)
    choosing = {seed for seed in counts if seed in chose} or {seed for seed, count in counts.items() if count > 1}
    curve = {rate: {s: a for s, a in seeds.items() if s in choosing} for rate, seeds in seen.items()}
    curve = {rate: seeds for rate, seeds in curve.items() if len(seeds) >= SEEDS}
    most = len(reported.get(compared, ()))
    alike = sum(len(runs) == most for runs in reported.values()) if most and not choosing & chose else 1
    gone = sum(row["optim.lr"] == compared and seed_of(row) not in chose for row in diverged)
    values = {rate: tuple(curve[rate][seed] for seed in sorted(curve[rate])) for rate in sorted(curve)}
    return Rates(compared, values if len(values) > 1 else {}, alike, gone, gone + (most or len(tried[compared])))
