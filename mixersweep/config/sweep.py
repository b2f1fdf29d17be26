"""The settings under ``sweep``, which say what runs an invocation means; they are not part of any run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixersweep.kinds import Count, Positive, Whole

Values = str | int | float | bool | None
"""The right side of an override: one value, or several in Hydra's grammar (``'256,512'``)."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for the learning rate by validation accuracy, done for each setting of the other values.

    ``lr`` are the first values tried and ``seeds`` the seeds of each; ``epochs`` is how long they train (None: as long
    as the runs). While the best value is at an end of the grid, one a factor of √10 beyond is added, at most ``grow``
    at either end.
    """

    lr: list[Positive]
    seeds: list[Whole]
    epochs: Count | None = None
    grow: Whole = 3


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A union of grids, each crossed with ``over``; ``infeasible`` says what to do with a point that has no network.

    ``refuse`` reports it as an error and trains the others, ``skip`` leaves it out, ``nearest`` takes the nearest
    settings that work. ``retries`` is how often a run that failed or was lost is launched again.
    """

    name: str | None = None
    grids: list[dict[str, Values]]
    over: dict[str, Values]
    search: Search | None = None
    retries: Whole = 0
    infeasible: Literal["refuse", "skip", "nearest"] = "refuse"
