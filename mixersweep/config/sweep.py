"""The settings under ``sweep``: how many runs an invocation means. Never part of any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixersweep.kinds import Count, Positive, Whole

Values = str | int | float | bool | None
"""What stands behind the ``=`` of an override: a value, or several in Hydra's grammar (``'256,512'``)."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Learning rates to choose from, on validation, for every setting of the other values.

    ``lr`` are the first values tried and ``seeds`` the seeds of each; ``epochs`` is how long they train (None: as the
    runs themselves). At most ``grow`` values, a factor of √10 apart, are added at either end while the best is there.
    """

    lr: list[Positive]
    seeds: list[Whole]
    epochs: Count | None = None
    grow: Whole = 3


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A union of grids, all crossed with ``over``; ``infeasible`` says what becomes of a point with no network.

    ``refuse`` tells of it as an error and trains the others, ``skip`` leaves it out, ``nearest`` takes the nearest
    settings that work.
    """

    name: str | None = None
    grids: list[dict[str, Values]]
    over: dict[str, Values]
    search: Search | None = None
    infeasible: Literal["refuse", "skip", "nearest"] = "refuse"
