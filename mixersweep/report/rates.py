"""How the learning rate of each cell (a model at one width) was chosen, as its runs show.

A rate counts as searched where at least two seeds ran at two or more rates, for as many epochs as the compared runs.
The best rate is that of the highest mean validation accuracy, where a diverged run counts as 0, as in the search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]

SEEDS = 2
"""The fewest seeds that a search must have run at a rate."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of one cell: the one that is compared, and those it was chosen from.

    ``tried`` holds the validation accuracies of the search seeds by rate, None where a run diverged.
    ``rates_of_reported`` is the number of rates that the reported seeds themselves were run at and chosen from, 1 where
    other seeds chose. ``diverged`` is how many of the compared rate's ``runs`` diverged and left no result.
    """

    compared: float
    tried: dict[float, tuple[float | None, ...]]
    rates_of_reported: int = 1
    diverged: int = 0
    runs: int = 0

    @property
    def is_searched(self) -> bool:
        """Whether the rate was chosen from several."""
        return len(self.tried) > 1

    @property
    def means(self) -> dict[float, float]:
        """Mean validation accuracy by rate; a diverged run counts as 0."""
        return {rate: float(np.mean([a or 0.0 for a in seen])) for rate, seen in sorted(self.tried.items())}

    @property
    def edge(self) -> str | None:
        """``lowest`` or ``highest`` where the best rate is at that edge of those tried, else None."""
        means = self.means
        if len(means) < 2:
            return None
        best = max(means, key=lambda rate: (means[rate], -rate))
        return "lowest" if best == min(means) else "highest" if best == max(means) else None

    @property
    def diverged_fraction(self) -> float:
        """The fraction of the compared rate's runs that diverged."""
        return self.diverged / self.runs if self.runs else 0.0


def rates_of(
    tried: Mapping[float, Sequence[Row]],
    diverged: Iterable[Row],
    compared: float,
    reported: Mapping[float, Sequence[Row]],
    chose: set[str],
    seed_of: Callable[[Row], str],
) -> Rates:
    """Read the rates of a cell from its completed runs by rate (``tried``) and those that ``diverged``.

    ``reported`` are the runs of ``tried`` without the search seeds, ``chose`` the search seeds of the comparison.
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
