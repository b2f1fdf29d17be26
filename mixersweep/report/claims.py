"""What a report may claim: that one model is better than another, or that a model's accuracy changes with its width.

A claim is made where its test shows an effect, by p corrected over all claims of the report, and nothing stands
against it (``objections``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from mixersweep.report.bootstrap import Estimate, Interval
from mixersweep.report.recipe import Cell

ALPHA = 0.05
TO_COME = Estimate(0.0, 0, 0, None)


@dataclass(frozen=True)
class Reason:
    """Why a claim is not made: in few words, and the particulars, which together are the whole text."""

    brief: str
    particulars: str = ""

    def __str__(self) -> str:
        return self.brief + self.particulars


@dataclass(frozen=True, kw_only=True)
class Claim(ABC):
    """A difference or a trend that a report may claim; ``p_holm`` is corrected over all claims of the report.

    ``barred`` are reasons, known before any test, for which nothing is claimed whatever the numbers: such a claim is
    not tested and counts in no correction. ``against`` is these, or else what the numbers themselves raise.
    """

    p_holm: float | None = None
    barred: list[Reason] = field(default_factory=list)
    against: list[Reason] = field(default_factory=list)

    @property
    @abstractmethod
    def effect(self) -> Estimate:
        """The estimate that is tested for being 0."""

    @property
    def tested(self) -> bool:
        """Whether it is a claim that could be made."""
        return self.effect.p is not None and not self.barred

    @property
    def shown(self) -> bool:
        """Whether the test shows an effect."""
        return self.p_holm is not None and self.p_holm <= ALPHA

    @property
    def decided(self) -> bool:
        """Whether it does, and nothing stands against it."""
        return self.shown and not self.against


@dataclass(frozen=True, kw_only=True)
class Pair(Claim):
    """The primary test of two models: ``difference`` is the first's accuracy minus the second's.

    ``at_best`` are the widths that are compared where each model has its best, which ``chosen_on`` chose. ``sizes``
    says in what the networks differ, and by how much at most (``sizes.largest``). ``clean`` is the estimate without
    rank-limited heads, where there are some.
    """

    first: str
    second: str
    joined: list[tuple[Cell, Cell]]
    pairs: int
    sizes: dict[str, float]
    difference: Estimate = TO_COME
    clean: Estimate | None = None
    at_best: tuple[int, int] | None = None
    chosen_on: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def effect(self) -> Estimate:
        """The difference."""
        return self.difference

    @property
    def widths(self) -> list[tuple[int, str | None]]:
        """Target width and shape of what is compared."""
        return [(one[1], one[2] or other[2]) for one, other in self.joined]


@dataclass(frozen=True, kw_only=True)
class Trend(Claim):
    """The slope of accuracy on log2 of the width, of one model on one branch, per doubling of the width.

    It is quoted as ``rise``, what it comes to over the widths that were measured. ``sizes`` says what else changes
    along them, and by how much at most. ``seeds_left_out`` are not at all of the widths, and so in none.
    """

    variant: str
    branch: str | None
    cells: list[Cell]
    widths: list[int]
    sizes: dict[str, float]
    doublings: float
    slope: Estimate = TO_COME
    seeds_left_out: int = 0

    @property
    def effect(self) -> Estimate:
        """The slope."""
        return self.slope

    @property
    def rise(self) -> Estimate:
        """The slope over the range that was measured: the change of accuracy from the narrowest to the widest."""
        return self.slope.scaled(self.doublings)

    @property
    def name(self) -> str:
        """The model, and the branch where there are two."""
        return f"{self.variant} ({self.branch})" if self.branch else self.variant


@dataclass(frozen=True)
class WidthTest:
    """Two models at one width and shape, over seeds alone: described, and nothing is claimed of it.

    ``p_sign`` is None where so few seeds could not reach ``ALPHA``.
    """

    first: str
    second: str
    width: int
    shape: str | None
    seeds: int
    difference: float
    interval: Interval | None
    over_seeds_and_images: Interval | None
    p_t: float | None
    p_sign: float | None
