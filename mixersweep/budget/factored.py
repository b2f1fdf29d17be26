"""The sizes of layers whose matrix is a product or sum of sparse factors: which widths go with which connections.

The connections of such a layer are the nonzeros of its factors together, each a weight and a multiply-add, while its
effective matrix may be full. Factors have whole sizes, so that few pairs of width and connections exist. A request is
met by the pair that minimises the larger of the two relative errors, as a Mixer's is, and refused beyond 2%.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from mixersweep.budget.terms import TOLERANCE, relative
from mixersweep.errors import Infeasible

Pair = tuple[int, int]
"""A width, and the connections of a layer of that width."""

Target = Callable[[int], int]
"""The connections that a budget leaves at a width; raises ``Infeasible`` where it leaves none."""


class Factored(ABC):
    """A kind of square layer made of factors, by its arithmetic."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """What its connections are, for messages."""

    @abstractmethod
    def pairs(self, width: int, connections: int) -> Iterable[Pair]:
        """Yield the pairs near a width and a number of connections, the nearest among them."""

    def own_width(self, connections: int) -> int | None:
        """The width where none is asked for; None: that of the widest Mixer."""
        del connections
        return None


def fitted(kind: Factored, width: int, target: Target, *, free: bool, budget: str) -> Pair:
    """Return the pair nearest to a width and a target; where the width is ``free`` and none is, that of another width.

    Raises ``Infeasible`` where none is within 2%, naming the nearest width for which one is.
    """
    for near in _outward(width):
        found = _within(kind, near, target)
        if found is None:
            continue
        if near == width or free:
            return found
        raise Infeasible(
            f"width={width}: {kind.rule}; with {budget} the nearest width is {found[0]}", {"width": found[0]}
        )
    raise Infeasible(f"{budget}: {kind.rule}, and none within 2% of it; raise or lower it a little")


def _within(kind: Factored, width: int, target: Target) -> Pair | None:
    """Return the pair within 2% of a width, and of the target at its own, that is nearest to both; or None."""

    def error(pair: Pair) -> Fraction:
        try:
            return max(relative(pair[0], width), relative(pair[1], target(pair[0])))
        except Infeasible:
            return Fraction(1)

    try:
        pairs = list(kind.pairs(width, target(width)))
    except Infeasible:
        return None
    best = min(pairs, key=lambda pair: (error(pair), pair), default=None)
    return best if best is not None and error(best) <= TOLERANCE else None


def _outward(width: int) -> Iterator[int]:
    """Yield a width and those around it, nearest first: in steps of 2%, up to a factor of 2^10."""
    steps = math.ceil(10 / math.log2(1 + TOLERANCE))
    found = (width * float(1 + TOLERANCE) ** (sign * step) for step in range(steps) for sign in (1, -1))
    yield from dict.fromkeys(max(1, round(near)) for near in itertools.islice(found, 1, None))


@dataclass(frozen=True)
class LowRank(Factored):
    """U Vᵀ + diag(d) of rank r: 2·m·r + m connections."""

    rule = "a low_rank layer of rank r, at least 1, has width·(2r + 1) connections"

    def pairs(self, width: int, connections: int) -> Iterator[Pair]:
        """Yield those of the two nearest ranks, below half the width."""
        below = self.rank(width, connections)
        for rank in {max(1, below), max(1, below + 1)}:
            each = 2 * rank + 1
            yield from ((m, m * each) for m in between(width, Fraction(connections, each)) if m >= each)

    def rank(self, width: int, connections: int) -> int:
        """The rank of a layer with so many connections."""
        return (connections // width - 1) // 2


def between(width: int, other: Fraction) -> Iterable[int]:
    """Return the whole numbers next to the geometric mean of two, where the larger relative error is smallest."""
    middle = math.sqrt(width * other)
    return range(max(1, math.floor(middle)), math.ceil(middle) + 1)
