"""The rules that a budget can follow: what is counted in a Mixer, as a function of its tokens and channels alone.

``Formula`` counts square layers, C·S·(h_t + h_c) / 2 nonzeros or (S·h_t + C·h_c) / 2 trainable weights per effective
matrix; its widest Mixer has a closed form. ``Real`` counts the layers as they are built (``count=real``: the first
layer maps patches, and has a skip beside it), or the FLOPs of an image. All counts are exact integers: a network meets
its target where ``count(S, C)`` is ``scale`` times the target.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeVar

from mixersweep.budget.expansion import Expansion
from mixersweep.budget.terms import TOLERANCE, Request, rounded_root

Counted = Literal["connections", "weights", "flops"]
N = TypeVar("N", int, float)


def rule_of(request: Request, expansion: Expansion) -> Rule:
    """Return the rule of a request for a Mixer, or for the Mixer whose sizes an MLP takes over.

    The latter has the skip layer that its tokens need.
    """
    mixer = request.structure in ("kronecker", "block_diagonal")
    tied = request.structure != "block_diagonal"
    counts: Counted = "connections"
    if request.budget == "flops":
        counts = "flops"
    elif request.budget == "parameters" and (tied or request.count == "real"):
        counts = "weights"
    if request.count == "formula" and counts != "flops":
        return Formula(counts, expansion)
    skips = request.skip_layer if mixer else "always"
    if request.stem != "patch":
        skips = "never"
    dimension = {"pool": 0, "linear": -1}.get(request.head, request.readout_dimension)
    facts = (request.depth, request.patches, request.patch_values, request.classes)
    return Real(counts, expansion, *facts, request.stem, skips, tied, dimension)


@dataclass(frozen=True)
class Formula:
    """The rule that counts square layers: their connections, or their shared weights as in Golubeva et al. (2021)."""

    counts: Counted
    expansion: Expansion

    @property
    def is_formula(self) -> bool:
        """True: this rule counts the formula's square layers."""
        return True

    @property
    def least_channels(self) -> int:
        """The fewest channels, 1: the formula ignores norms."""
        return 1

    @property
    def scale(self) -> int:
        """The factor of counts, 2: the mean over two kinds of layers may be half an integer."""
        return 2

    @property
    def special(self) -> None:
        """None: no number of tokens is an exception to the order of counts."""
        return None

    def count(self, tokens: int, channels: int) -> int:
        """Return twice the mean count of a matrix, an integer that rises with tokens and with channels."""
        if self.counts == "connections":
            return self.expansion.twice_connections(tokens, channels)
        return self.expansion.twice_weights(tokens, channels)

    def rising(self, tokens: int, channels: int) -> int:
        """Return ``count``, which has no exceptions."""
        return self.count(tokens, channels)

    def smooth(self, tokens: float, channels: float) -> float:
        """Return the count of a matrix for real-valued sizes, without rounding hidden ones: the target, if met."""
        token_hidden, channel_hidden = self.expansion.unrounded(tokens, channels)
        if self.counts == "connections":
            return tokens * channels * (token_hidden + channel_hidden) / 2
        return (tokens * token_hidden + channels * channel_hidden) / 2

    def widest(self, target: int) -> int:
        """Return the largest effective width, which equal expansions reach at S = C."""
        return self.share_of_widest("width", Fraction(1), target)

    def share_of_widest(self, name: str, share: Fraction, target: int) -> int:
        """Return a share of the width, tokens or channels of the widest Mixer, rounded, at least 1.

        The widest has g_t·S = g_c·C for connections, and g_t·S² = g_c·C² for weights.
        """
        token, channel = self.expansion.token, self.expansion.channel
        own, other = (token, channel) if name == "tokens" else (channel, token)
        if self.counts == "weights":
            power, degree = (Fraction(target) ** 2 / (token * channel) if name == "width" else target / own), 2
        else:
            power = Fraction(target) ** 2 / (token * channel) if name == "width" else target * other / own**2
            degree = 3
        return max(1, rounded_root(share**degree * power, degree))

    def completed(self, target: int, name: str, known: int) -> int:
        """Return the other side of a pair: the rounded root of the formula with unrounded hidden sizes."""
        least = min(self.expansion.token, self.expansion.channel)
        root, beyond = -1, 2 + math.isqrt(math.floor(2 * target / least))
        while beyond - root > 1:  # the root is rounded up to x where the formula still fits at x - 1/2
            middle = (root + beyond) // 2
            if self._unrounded(name, known, Fraction(max(2 * middle - 1, 0), 2)) <= 2 * target:
                root = middle
            else:
                beyond = middle
        return root

    def _unrounded(self, side: str, known: int, other: Fraction) -> Fraction:
        """Return ``count`` with unrounded hidden sizes, for one known ``side`` (tokens or channels) and the other."""
        own, free = self.expansion.channel, self.expansion.token
        if side == "tokens":
            own, free = free, own
        if self.counts == "connections":
            return known * other * (free * other + own * known)
        return free * other * other + own * known * known

    def named(self, target: int) -> str:
        """The target as it is set."""
        return f"{self.counts}={target}"

    def of(self, target: int) -> str:
        """The target and the expansion."""
        return f"{self.named(target)} and {self.expansion}"


@dataclass(frozen=True)
class Real:
    """The rule that counts layers as they are built: mixing layers and the skip, as a mean per matrix; or all FLOPs.

    ``skips`` says when the first layer has a linear skip, as ``model.skip_layer`` does; ``readout`` is the number of
    features that the head reads, 0 for the channels and -1 for all.
    """

    counts: Counted
    expansion: Expansion
    depth: int
    patches: int
    patch_values: int
    classes: int
    stem: Literal["patch", "resize", "none"]
    skips: Literal["auto", "always", "never"]
    tied: bool
    readout: int

    @property
    def is_formula(self) -> bool:
        """False: this rule counts layers as they are built."""
        return False

    @property
    def least_channels(self) -> int:
        """The fewest channels: 2 where there are norms, which turn a single channel into zeros."""
        return 1 if self.stem == "none" else 2

    @property
    def scale(self) -> int:
        """The factor of counts: the number of matrices that a mean is over; 1 for FLOPs, which are no mean."""
        return 1 if self.counts == "flops" else (4 if self.expansion.hidden else 2) * self.depth

    @property
    def special(self) -> int | None:
        """The one number of tokens without a skip layer, and so an exception to the order of counts; or None."""
        return self.patches if self.skips == "auto" else None

    def count(self, tokens: int, channels: int) -> int:
        """Return the count of the network of these sizes, times ``scale`` where it is a mean."""
        sizes = self.expansion.sizes(tokens, channels)
        return self._count(tokens, channels, sizes, skip=self.skips != "never" and tokens != self.special)

    def rising(self, tokens: int, channels: int) -> int:
        """Return ``count`` as if ``special`` tokens had a skip too, so that it rises with tokens and with channels."""
        return self._count(tokens, channels, self.expansion.sizes(tokens, channels), skip=self.skips != "never")

    def smooth(self, tokens: float, channels: float) -> float:
        """Return ``rising`` / ``scale`` for real-valued sizes, without rounding hidden ones: the target, if met."""
        hidden = self.expansion.unrounded(tokens, channels)
        return self._count(tokens, channels, hidden, skip=self.skips != "never") / self.scale

    def _count(self, tokens: N, channels: N, hidden: tuple[N, N], *, skip: bool) -> N:
        if self.counts == "weights" and self.tied:
            return self._mixing(tokens, channels, hidden, 1, 1) + skip * tokens * self.patches
        total = self._mixing(tokens, channels, hidden, channels, tokens)
        if self.counts == "weights":
            return total + skip * tokens * self.patches
        mapped = channels * tokens * self.patches  # by the skip, or by the stem that resizes
        if self.counts == "connections":
            return total + skip * mapped
        embedded = self.patches * self.patch_values * channels * (self.stem != "none")
        read = (channels, tokens * channels)[self.readout] if self.readout <= 0 else self.readout
        return 2 * (embedded + (skip or self.stem == "resize") * mapped + total + read * self.classes)

    def _mixing(self, tokens: N, channels: N, hidden: tuple[N, N], token_blocks: N, channel_blocks: N) -> N:
        """Return the entries of all mixing layers with so many blocks of token and of channel mixing."""
        inputs = self.patches if self.stem == "patch" else tokens
        token_hidden, channel_hidden = hidden
        if not self.expansion.hidden:
            of_tokens = tokens * (inputs + (self.depth - 1) * tokens)
            return token_blocks * of_tokens + self.depth * channel_blocks * channels**2
        of_tokens = token_hidden * (inputs + (2 * self.depth - 1) * tokens)
        return token_blocks * of_tokens + 2 * self.depth * channel_blocks * channels * channel_hidden

    def widest(self, target: int) -> int:
        """Return the largest effective width with the target, or at most 2% less."""
        tokens, channels = self.widest_pair(target)
        return tokens * channels

    def widest_pair(self, target: int) -> tuple[int, int]:
        """Return the tokens and channels of the widest Mixer."""
        return _widest_pair(self, target)

    def share_of_widest(self, name: str, share: Fraction, target: int) -> int:
        """Return a share of the width, tokens or channels of the widest Mixer, rounded, at least 1."""
        tokens, channels = self.widest_pair(target)
        size = {"width": tokens * channels, "tokens": tokens, "channels": channels}[name]
        return max(1, rounded_root(share * size, 1))

    def completed(self, target: int, name: str, known: int) -> int:
        """Return the other side of a pair, which comes nearest to the target; of two equally near, the smaller."""

        def count(other: int) -> int:
            return self.count(*(known, other) if name == "tokens" else (other, known))

        def rising(other: int) -> int:
            return self.rising(other, known) if name == "channels" else count(other)

        sides = range(1, self.scale * target + 1)
        found = bisect_right(sides, self.scale * target, key=rising)
        near = {max(1, found), found + 1, self.special if name == "channels" and self.special else found + 1}
        return min(near, key=lambda other: (abs(count(other) - self.scale * target), other))

    def named(self, target: int) -> str:
        """The target as it is set."""
        return f"{self.counts}={target}" + ("" if self.counts == "flops" else " (count=real)")

    def of(self, target: int) -> str:
        """The target and the expansion."""
        return f"{self.named(target)} and {self.expansion}"


Rule = Formula | Real


@lru_cache(maxsize=256)
def _widest_pair(rule: Real, target: int) -> tuple[int, int]:
    """Return (tokens, channels) of the widest Mixer with the target or up to 2% less; of several the most square.

    Where integers allow none so near, return the widest with less.
    """
    most, least = rule.scale * target, rule.least_channels

    def merit(pair: tuple[int, int]) -> tuple[bool, int, int]:
        return most - rule.count(*pair) <= TOLERANCE * most, pair[0] * pair[1], -abs(pair[0] - pair[1])

    found = [(1, least)]
    channels = bisect_right(range(1, most + 1), most, key=lambda c: rule.rising(1, c))
    for tokens in itertools.count(1):
        while channels >= least and rule.rising(tokens, channels) > most:  # each token leaves room for fewer channels
            channels -= 1
        if channels < least:
            break
        found.append((tokens, channels))
    if rule.special:
        channels = bisect_right(range(1, most + 1), most, key=lambda c: rule.count(rule.special or 0, c))
        found += [(rule.special, channels)] if channels >= least else []
    return max(found, key=merit)
