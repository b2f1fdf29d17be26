"""The claims that a report tests: one model is better than another, or a model's accuracy changes with its width.

A claim is made where its test is significant, with p corrected over all claims of the report, and there is no
objection to it (``objections``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from mixersweep.report.bootstrap import Estimate, Interval
from mixersweep.report.recipe import Cell

ALPHA = 0.05
NOT_ESTIMATED = Estimate(0.0, 0, 0, None)


@dataclass(frozen=True)
class Reason:
    """Why a claim is not made: ``brief`` for a line of text; followed by ``particulars`` it is the full text."""

    brief: str
    particulars: str = ""

    def __str__(self) -> str:
        return self.brief + self.particulars


@dataclass(frozen=True, kw_only=True)
class Claim(ABC):
    """A difference or a trend that a report may claim; ``p_holm`` is corrected over all claims of the report.

    ``barred`` are the reasons, known before any test, not to claim it whatever the numbers: such a claim is not tested
    and does not count for the correction. ``against`` are these reasons or, where there are none, the objections that
    follow from the numbers.
    """

    p_holm: float | None = None
    barred: list[Reason] = field(default_factory=list)
    against: list[Reason] = field(default_factory=list)

    @property
    @abstractmethod
    def effect(self) -> Estimate:
        """The estimate that is tested against 0."""

    @property
    def is_tested(self) -> bool:
        """Whether the claim is tested: it has a p-value and nothing bars it."""
        return self.effect.p is not None and not self.barred

    @property
    def is_shown(self) -> bool:
        """Whether the test is significant after correction."""
        return self.p_holm is not None and self.p_holm <= ALPHA

    @property
    def is_decided(self) -> bool:
        """Whether the claim is made: the test is significant and there is no objection."""
        return self.is_shown and not self.against


@dataclass(frozen=True, kw_only=True)
class Pair(Claim):
    """The primary test of two models: ``difference`` is the first's accuracy minus the second's.

    Where each model is compared at its best width, ``at_best`` are the two widths and ``chosen_on`` the seeds that
    chose them. ``sizes`` are the largest relative differences of the networks' sizes (``sizes.largest_differences``).
    ``clean`` is the estimate without rank-limited heads, None where no head is rank-limited.
    """

    first: str
    second: str
    joined: list[tuple[Cell, Cell]]
    pairs: int
    sizes: dict[str, float]
    difference: Estimate = NOT_ESTIMATED
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
        """The target widths and shapes at which the models are compared."""
        return [(one[1], one[2] or other[2]) for one, other in self.joined]


@dataclass(frozen=True, kw_only=True)
class Trend(Claim):
    """The slope of accuracy on log2 of the width, for one model on one branch (tall or wide): accuracy per doubling.

    Reports quote ``rise``, the slope times the range of widths measured. ``sizes`` are the largest relative differences
    of the other sizes along the widths. ``seeds_left_out`` counts the seeds that some width lacks; they are not used.
    """

    variant: str
    branch: str | None
    cells: list[Cell]
    widths: list[int]
    sizes: dict[str, float]
    doublings: float
    slope: Estimate = NOT_ESTIMATED
    seeds_left_out: int = 0

    @property
    def effect(self) -> Estimate:
        """The slope."""
        return self.slope

    @property
    def rise(self) -> Estimate:
        """The fitted change of accuracy from the narrowest to the widest network."""
        return self.slope.scaled(self.doublings)

    @property
    def name(self) -> str:
        """The model, and the branch where there are two."""
        return f"{self.variant} ({self.branch})" if self.branch else self.variant


@dataclass(frozen=True)
class WidthTest:
    """A descriptive test of two models at one width and shape, over seeds alone; nothing is claimed from it.

    ``p_t`` is from Student's t-test and ``p_sign`` from the exact sign-flip test, None where there are too few seeds
    for it to reach ``ALPHA``.
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
