"""The sizes of layers whose matrix is a product or sum of sparse factors: which widths go with which connections.

The connections of such a layer are the nonzeros of its factors together, each a weight and a multiply-add, while its
effective matrix may be full. Factors have whole sizes, so that few pairs of width and connections exist. A request is
met by the pair that minimises the larger of the two relative errors, as a Mixer's is, and refused beyond 2%.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from mixersweep.budget.terms import TOLERANCE, Factored, Pair, relative, rounded_root
from mixersweep.errors import Infeasible

Target = Callable[[int], int]
"""The connections that a budget leaves at a width; raises ``Infeasible`` where it leaves none."""


def fitted(kind: Factored, width: int, target: Target, *, free: bool, budget: str) -> Pair:
    """Return the pair nearest to a width and a target; where the width is ``free`` and none is, that of another width.

    Raises ``Infeasible`` where none is within 2%, naming the nearest width for which one is.
    """
    for near in _outward(width):
        found = _within(kind, near, target)
        if found is None or _within(kind, found[0], target) is None:
            continue
        if near == width or free:
            return found
        raise Infeasible(
            f"width={width}: {kind.rule}; with {budget} the nearest width is {found[0]}", {"width": found[0]}
        )
    for connections in _outward(target(width)):
        found = _within(kind, kind.own_width(connections) or width, lambda _, has=connections: has)  # type: ignore[misc]
        if found is not None:
            there = f"the nearest has connections={found[1]} at width={found[0]}"
            raise Infeasible(f"{budget}: {kind.rule}, and none is within 2% of that; {there}")
    raise Infeasible(f"{budget}: {kind.rule}, and none is near to that")


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


@dataclass(frozen=True)
class Blocks(Factored):
    """Blocks of b x b on the diagonal: m·b connections, where b divides m."""

    rule = "a block_diagonal layer of blocks b x b, b at least 2, has width·b connections"

    def pairs(self, width: int, connections: int) -> Iterator[Pair]:
        """Yield those of the two nearest sizes of blocks."""
        below = self.size(width, connections)
        for size in {max(2, below), max(2, below + 1)}:
            for near in between(width, Fraction(connections, size)):
                yield from ((size * count, size**2 * count) for count in (near // size, near // size + 1) if count)

    def size(self, width: int, connections: int) -> int:
        """The side of the blocks of a layer with so many connections."""
        return connections // width


@dataclass(frozen=True)
class BTT(Factored):
    """Two factors of rank r, on features as an S x C matrix: r·m·(S + C) connections, m = S·C."""

    rank: int

    @property
    def rule(self) -> str:
        """What its connections are, for messages."""
        return f"a btt layer of S·C features, with model.rank={self.rank}, has {self.rank}·width·(S + C) connections"

    def pairs(self, width: int, connections: int) -> Iterator[Pair]:
        """Yield those of S >= C whose sum and product are near to what the two numbers say."""
        total = connections / (self.rank * width)
        if total < 0.95 * 2 * math.sqrt(width):  # S + C is at least that of a square
            return
        middle = (total - math.sqrt(max(0.0, total**2 - 4 * width))) / 2
        low, high = (min(middle, math.sqrt(width)) * factor for factor in (0.75, 1.25))
        for columns in range(max(1, math.floor(low)), math.ceil(high) + 1):
            near = width / columns
            for rows in range(max(columns, math.floor(0.98 * near)), math.ceil(1.02 * near) + 1):
                close = abs((rows + columns) / total - 1) < 0.06
                if close and self.rank * (rows + columns) <= rows * columns:
                    yield rows * columns, self.rank * rows * columns * (rows + columns)

    def own_width(self, connections: int) -> int:
        """The widest, at S = C."""
        return max(1, rounded_root(Fraction(connections, 2 * self.rank) ** 2, 3))

    def shape(self, width: int, connections: int) -> Pair:
        """(S, C) of a layer with so many connections, S >= C."""
        total = connections // (self.rank * width)
        apart = math.isqrt(total**2 - 4 * width)
        return (total + apart) // 2, (total - apart) // 2


@dataclass(frozen=True)
class Butterfly(Factored):
    """One factor for each of the radices b_1, b_2, ... with product m: m·(b_1 + b_2 + ...) connections.

    ``factors`` is how many there are; None: as many as fit, so that blocks are near to 2 x 2. Of all radices that fit
    the most equal are taken.
    """

    factors: int | None

    @property
    def rule(self) -> str:
        """What its connections are, for messages."""
        many = "" if self.factors is None else f" {self.factors}"
        return f"a butterfly layer has width·(sum of the{many} radices whose product is the width) connections"

    def pairs(self, width: int, connections: int) -> Iterator[Pair]:
        """Yield the pair of the radices that are taken: those that meet both exactly, or some within 2%."""
        radices = self._radices(width, connections, Fraction(0)) or self._radices(width, connections, TOLERANCE)
        if radices is not None:
            yield math.prod(radices), math.prod(radices) * sum(radices)

    def own_width(self, connections: int) -> int:
        """The width at which all radices are equal, and 2 where their number is free."""

        def has(width: int) -> int:
            return round(width * (2 * math.log2(width) if self.factors is None else _power_sum(width, self.factors)))

        return max(2, bisect_left(range(2, connections + 1), connections, key=has) + 1)

    def radices(self, width: int, connections: int) -> tuple[int, ...]:
        """The radices of a layer with so many connections, in ascending order."""
        radices = self._radices(width, connections, Fraction(0))
        assert radices is not None
        return radices

    def _radices(self, width: int, connections: int, tolerance: Fraction) -> tuple[int, ...] | None:
        most = math.floor(math.log2(width * (1 + tolerance))) if width > 1 else 0
        for count in range(most, 1, -1) if self.factors is None else [self.factors]:
            found = _most_equal(width, connections, count, tolerance)
            if found is not None:
                return found
        return None


def _power_sum(width: int, count: int) -> float:
    return count * math.exp(math.log(width) / count)


@lru_cache(maxsize=4096)
def _most_equal(width: int, connections: int, count: int, tolerance: Fraction) -> tuple[int, ...] | None:
    """Return ``count`` radices of at least 2 for a width and connections, of several the most equal; None if none fit.

    Their ratio, largest over smallest, is what is compared, then how near they come.
    """
    low, high = (math.ceil(width * (1 - tolerance)), math.floor(width * (1 + tolerance)))
    fewest, most = connections * (1 - tolerance) / (high or 1), connections * (1 + tolerance) / (low or 1)
    found: list[tuple[int, ...]] = []

    def extend(radices: tuple[int, ...], product: int, total: int) -> None:
        left = count - len(radices)
        least = radices[-1] if radices else 2
        if left == 1:
            for last in range(max(least, -(-low // product)), high // product + 1):
                has = product * last * (total + last)
                if relative(has, connections) <= tolerance:
                    found.append((*radices, last))
            return
        for radix in range(least, high + 1):
            rest, still = high / (product * radix), left - 1
            if rest < radix**still:
                break
            # the sum of the others is largest if all but one are as small as can be, and smallest if all are equal
            if total + radix * still + rest / radix ** (still - 1) < fewest - 1e-6:
                continue
            if total + radix + still * (low / (product * radix)) ** (1 / still) > most + 1e-6:
                continue
            extend((*radices, radix), product * radix, total + radix)

    extend((), 1, 0)

    def merit(radices: tuple[int, ...]) -> tuple[Fraction, Fraction, tuple[int, ...]]:
        product = math.prod(radices)
        missed = max(relative(product, width), relative(product * sum(radices), connections))
        return Fraction(radices[-1], radices[0]), missed, radices

    return min(found, key=merit, default=None)
