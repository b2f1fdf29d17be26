"""Solve for the shape of a Mixer: the integer pair (tokens, channels) that meets a width and a budget.

The larger number of a pair is the long side, the smaller the narrow side; ``branch`` says which one the tokens are.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mixersweep.budget.expansion import Expansion, expansion_from_shape, without_density
from mixersweep.budget.rules import Formula, Real, Rule, rule_of
from mixersweep.budget.terms import DEFAULT_CONNECTIONS, TOLERANCE, Request, Shape, exact, relative
from mixersweep.errors import Infeasible, UserError


def widest(connections: int, token_expansion: float = 1.0, channel_expansion: float = 1.0) -> int:
    """Return the largest effective width of a Mixer, round(Omega^(2/3) / (g_t·g_c)^(1/3)), in exact arithmetic."""
    expansion = Expansion(exact(token_expansion), exact(channel_expansion), hidden=True)
    return Formula("connections", expansion).widest(connections)


def with_sizes(request: Request, expansion: Expansion | None) -> Request:
    """Replace a request's shares of the widest Mixer by sizes.

    That Mixer is the same for every structure, so equal shares are equal sizes; it is narrower only where weights are
    fixed and not shared between blocks. A share of its tokens or channels fixes the ratio C/S, whatever the budget.
    Raises ``UserError`` where another size is given beside a share, or no expansion is.
    """
    asked = ", ".join(f"{name}={float(100 * share):g}%" for name, share in request.shares.items())
    if expansion is None:
        raise UserError(f"{asked}: the widest mixer depends on the expansion; give one instead of expansion=auto")
    for name in ("width", "tokens", "channels", "density"):
        value = getattr(request, name)
        if value is not None:
            raise UserError(f"{asked}: is a share of the widest mixer, where {name}={value:g} is fixed; leave one out")
    rule = rule_of(request, expansion)
    target = given_target(request, rule) or DEFAULT_CONNECTIONS
    sizes: dict[str, Any] = {name: rule.share_of_widest(name, share, target) for name, share in request.shares.items()}
    return dataclasses.replace(request, **sizes, shares={})


def given_target(request: Request, rule: Rule) -> int | None:
    """Return the target that the request gives for what the rule counts, or None."""
    asked: int | None = getattr(request, rule.counts)
    return asked


def mixer_shape(request: Request, expansion: Expansion | None) -> Shape:
    """Solve a request for a Mixer, tied or not.

    Raises ``UserError`` where settings contradict each other, or no integer pair comes within 2%.
    """
    if expansion is None:
        expansion = expansion_from_shape(request)
    rule = rule_of(request, expansion)
    _refuse_density(request, rule)
    request = without_density(request, expansion)
    tokens, channels = request.tokens, request.channels
    if request.width is not None and (tokens is None) != (channels is None):
        given = "tokens" if tokens is not None else "channels"
        known = tokens if tokens is not None else channels
        assert known is not None
        other, rest = divmod(request.width, known)
        if rest or not other:
            nearest = max(1, round(request.width / known)) * known
            text = f"width={request.width}: not a multiple of {given}={known}; the nearest that is: {nearest}"
            raise Infeasible(text, {"width": nearest})
        tokens, channels = (known, other) if given == "tokens" else (other, known)
    asked = given_target(request, rule)
    if tokens is not None and channels is not None:
        _check_agreement(request, rule, asked, tokens, channels)
        return _shape_of(rule, tokens, channels, request.width, asked)
    target = asked or DEFAULT_CONNECTIONS  # weights and FLOPs are always given here
    if tokens is not None or channels is not None:
        tokens, channels = _complete_pair(rule, target, tokens, channels)
        return _shape_of(rule, tokens, channels, None, target)
    limit = rule.widest(target)
    width = request.width or limit
    if width > limit:
        best = _solve_pair(limit, target, rule, request.branch)
        at = f" ({_pair_text(*best)})" if best else ""
        raise Infeasible(
            f"width={width}: the widest mixer with {rule.of(target)} is {limit}{at}. "
            f"Lower width, or raise {rule.counts}",
            {"width": best[0] * best[1] if best else limit},
        )
    pair = _solve_pair(width, target, rule, request.branch)
    if request.width is None and isinstance(rule, Real):  # the widest pair decides its own branch
        pair = rule.widest_pair(target)
        pair = pair if relative(rule.count(*pair), rule.scale * target) <= TOLERANCE else None
    if pair is None:
        raise _no_pair_error(request, width, target, rule)
    return _shape_of(rule, *pair, width, target)


def _shape_of(rule: Rule, tokens: int, channels: int, width_target: int | None, target: int | None) -> Shape:
    expansion = rule.expansion
    token_hidden, channel_hidden = expansion.sizes(tokens, channels)
    connections = Fraction(expansion.twice_connections(tokens, channels), 2)
    hidden_width = max(channels * token_hidden, tokens * channel_hidden) if expansion.hidden else tokens * channels
    factor = float(expansion.token)
    if expansion.token != expansion.channel:  # the factor g for which g·(S + C) gives the same connections
        factor = float((expansion.token * tokens + expansion.channel * channels) / (tokens + channels))
    return Shape(
        width=tokens * channels,
        width_target=width_target or tokens * channels,
        hidden_width=hidden_width,
        tokens=tokens,
        channels=channels,
        token_hidden=token_hidden,
        channel_hidden=channel_hidden,
        expansion=factor,
        connections=connections,
        connections_target=(rule.is_formula and rule.counts == "connections" and target) or round(connections),
        target=target,
        counted=Fraction(rule.count(tokens, channels), rule.scale),
    )


def _refuse_density(request: Request, rule: Rule) -> None:
    """Refuse a density where the rule is not the formula, whose square layers define it."""
    if request.density is not None and not rule.is_formula:
        how = "budget=flops" if rule.counts == "flops" else "count=real"
        raise UserError(
            f"density={request.density:g}: is that of square layers, by the formula; with {how} give {rule.counts} and "
            "a width, tokens or channels instead"
        )


def _check_agreement(request: Request, rule: Rule, asked: int | None, tokens: int, channels: int) -> None:
    pair = _pair_text(tokens, channels)
    if request.width is not None and relative(tokens * channels, request.width) > TOLERANCE:
        raise UserError(f"width={request.width}: contradicts {pair}, whose width is {tokens * channels}; leave one out")
    has = Fraction(rule.count(tokens, channels), rule.scale)
    if asked is not None and relative(has, asked) > TOLERANCE:
        freed = " or, with expansion=auto, let the expansion follow" if rule.expansion.hidden else ""
        raise UserError(
            f"{rule.counts}={asked}: contradicts {pair} with {rule.expansion}, "
            f"which has {float(has):.12g}; leave {rule.counts} out ({rule.counts}=auto){freed}"
        )


def _complete_pair(rule: Rule, target: int, tokens: int | None, channels: int | None) -> tuple[int, int]:
    """Complete the pair by the missing one of tokens and channels.

    Raises ``Infeasible``, with the nearest given side that has a partner, where none comes within 2%.
    """
    name, known = ("tokens", tokens) if tokens is not None else ("channels", channels)
    assert known is not None
    pair = _pair_with(rule, target, name, known)
    if pair is not None:
        return pair
    nearest = _nearest_side(rule, target, name, known)
    raise Infeasible(
        f"{name}={known}: no mixer with {rule.expansion} comes within 2% of {rule.named(target)} there; "
        + (f"the nearest {name} with one: {nearest}" if nearest else f"raise {rule.counts}"),
        {name: nearest} if nearest else None,
    )


def _pair_with(rule: Rule, target: int, name: str, known: int) -> tuple[int, int] | None:
    """Return the pair of ``known`` and the other side by the rule, or None where it is off by more than 2%."""
    other = rule.completed(target, name, known)
    pair = (known, other) if name == "tokens" else (other, known)
    if (
        min(pair) > 0
        and pair[1] >= rule.least_channels
        and relative(rule.count(*pair), rule.scale * target) <= TOLERANCE
    ):
        return pair
    return None


def _nearest_side(rule: Rule, target: int, name: str, known: int) -> int | None:
    """Return the tokens or channels nearest to ``known`` for which a Mixer with the target exists, or None."""
    sides = set()
    for branch in ("tall", "wide"):
        for tokens, channels in _pairs_near(target, rule, branch):
            sides.add(tokens if name == "tokens" else channels)
    by_distance = sorted(sides, key=lambda side: (abs(side - known), side))
    return next((side for side in by_distance if _pair_with(rule, target, name, side)), None)


def _sides(branch: str, narrow: int, long: int) -> tuple[int, int]:
    """Return (tokens, channels) of a tall (tokens >= channels) or a wide pair."""
    return (long, narrow) if branch == "tall" else (narrow, long)


def _longs_near(target: int, rule: Rule, branch: str, narrow: int, longs: range) -> range:
    """Return those long sides whose count, which rises with the side, lies within 2% of the target."""

    def rising(long: int) -> int:
        return rule.rising(long, narrow) if branch == "tall" else rule.count(narrow, long)

    low = math.ceil(rule.scale * target * (1 - TOLERANCE))
    high = math.floor(rule.scale * target * (1 + TOLERANCE))
    return longs[bisect_left(longs, low, key=rising) : bisect_right(longs, high, key=rising)]


def _pairs_near(target: int, rule: Rule, branch: str) -> Iterator[tuple[int, int]]:
    """Yield every pair of the branch whose count lies within 2% of the target."""
    high = math.floor(rule.scale * target * (1 + TOLERANCE))
    for narrow in itertools.count(1):
        if rule.count(narrow, narrow) > high and narrow > (rule.special or 0):
            return
        longs = range(narrow, high + 1)
        for long in (*_longs_near(target, rule, branch, narrow, longs), *_special_longs(rule, branch, longs)):
            pair = _sides(branch, narrow, long)
            if pair[1] >= rule.least_channels and relative(rule.count(*pair), rule.scale * target) <= TOLERANCE:
                yield pair


def _special_longs(rule: Rule, branch: str, longs: range) -> list[int]:
    """Return the long sides, one at most, whose count breaks the rising order (``Rule.special``)."""
    return [rule.special] if branch == "tall" and rule.special is not None and rule.special in longs else []


@lru_cache(maxsize=4096)
def _solve_pair(width: int, target: int, rule: Rule, branch: str) -> tuple[int, int] | None:
    """Return the integer pair that minimises the larger of two relative errors, of S·C against width and of the count.

    Ties go to the smaller error of the count, then to the smaller |S - C|. None where the larger error exceeds 2%.
    """

    def errors(pair: tuple[int, int], count: Callable[[int, int], int]) -> tuple[Fraction, Fraction, int]:
        tokens, channels = pair
        of_width = relative(tokens * channels, width)
        of_count = relative(count(tokens, channels), rule.scale * target)
        return max(of_width, of_count), of_count, abs(tokens - channels)

    best: tuple[int, int] | None = None
    low, high = width * (1 - TOLERANCE), width * (1 + TOLERANCE)
    for narrow in range(1, math.isqrt(math.floor(high)) + 1):
        within = range(max(narrow, math.ceil(low / narrow)), math.floor(high / narrow) + 1)
        longs = _longs_near(target, rule, branch, narrow, within)

        def rises(long: int, narrow: int = narrow) -> bool:
            here, there = (errors(_sides(branch, narrow, at), rule.rising)[0] for at in (long, long + 1))
            return here <= there

        # Each error falls, then rises with the long side, and so does the larger: at most two sides share its minimum.
        turn = bisect_left(longs[:-1], True, key=rises)
        for long in (*longs[max(0, turn - 1) : turn + 3], *_special_longs(rule, branch, within)):
            pair = _sides(branch, narrow, long)
            found = errors(pair, rule.count)
            fits = found[0] <= TOLERANCE and pair[1] >= rule.least_channels
            if fits and (best is None or found < errors(best, rule.count)):
                best = pair
    return best


def _no_pair_error(request: Request, width: int, target: int, rule: Rule) -> UserError:
    """Return the error for a width without a pair within 2%, with the nearest width or budget that has one."""
    limit = rule.widest(target)
    near = [(s, c) for s, c in _pairs_near(target, rule, request.branch) if s * c <= limit]
    asked = f"width={width}" if request.width is not None else f"{rule.counts}={target}"
    works: dict[str, int | str] = {}
    if near:
        tokens, channels = min(near, key=lambda pair: (abs(pair[0] * pair[1] - width), abs(pair[0] - pair[1])))
        fits = f"the nearest width with one: {tokens * channels} ({_pair_text(tokens, channels)})"
        works = {"width": tokens * channels}
    else:
        nearest = _nearest_target(request, target, rule)
        fits = f"the nearest {rule.counts} with one: {nearest}" if nearest else "give tokens and channels instead"
        works = {rule.counts: nearest} if nearest else {}
    return Infeasible(
        f"{asked}: no mixer with {rule.expansion} comes within 2% of width={width} and {rule.named(target)}; {fits}",
        works,
    )


def _nearest_target(request: Request, target: int, rule: Rule) -> int | None:
    """Return the budget nearest to the target at which a Mixer of the requested width (or the widest) exists, or None.

    Only for small networks can the 2% around a budget be empty, so a few small pairs are all that can be near.
    """
    found = set()
    for narrow in range(1, 33):
        for long in range(narrow, max(request.width or 0, 33) // narrow + 1):
            pair = _sides(request.branch, narrow, long)
            if pair[1] < rule.least_channels:
                continue
            has = Fraction(rule.count(*pair), rule.scale)
            low, high = has / (1 + TOLERANCE), has / (1 - TOLERANCE)
            found |= {math.ceil(has), min(max(target, math.ceil(low)), math.floor(high))}
    for near in sorted(found - {0}, key=lambda near: (abs(near - target), near)):
        limit = rule.widest(near)
        width = request.width or limit
        if width <= limit and _solve_pair(width, near, rule, request.branch):
            return near
    return None


def _pair_text(tokens: int, channels: int) -> str:
    return f"tokens=channels={tokens}" if tokens == channels else f"tokens={tokens}, channels={channels}"
