"""The shape of a Mixer: the integer pair (tokens, channels) that meets a width and a number of connections."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from mixersweep.budget.expansion import Expansion, expansion_from_shape, without_density
from mixersweep.budget.terms import DEFAULT_CONNECTIONS, TOLERANCE, Request, Shape, exact, relative, rounded_root
from mixersweep.errors import UserError


def widest(connections: int, token_expansion: float = 1.0, channel_expansion: float = 1.0) -> int:
    """The largest effective width of a Mixer: round(Omega^(2/3) / (g_t·g_c)^(1/3)), in exact arithmetic."""
    cube = Fraction(connections) ** 2 / (exact(token_expansion) * exact(channel_expansion))
    return max(1, rounded_root(cube, 3))


def mixer_shape(request: Request, expansion: Expansion | None) -> Shape:
    if expansion is None:
        expansion = expansion_from_shape(request)
    request = without_density(request, expansion)
    tokens, channels = request.tokens, request.channels
    if request.width is not None and (tokens is None) != (channels is None):
        given = "tokens" if tokens is not None else "channels"
        known = tokens if tokens is not None else channels
        assert known is not None
        other, rest = divmod(request.width, known)
        if rest or not other:
            nearest = max(1, round(request.width / known)) * known
            raise UserError(f"width={request.width}: not a multiple of {given}={known}; the nearest that is: {nearest}")
        tokens, channels = (known, other) if given == "tokens" else (other, known)
    if tokens is not None and channels is not None:
        _check_agreement(request, expansion, tokens, channels)
        return _shape_of(expansion, tokens, channels, request.width, request.connections)
    connections = request.connections or DEFAULT_CONNECTIONS
    if tokens is not None or channels is not None:
        tokens, channels = _complete(expansion, connections, tokens, channels)
        return _shape_of(expansion, tokens, channels, None, connections)
    limit = widest(connections, float(expansion.token), float(expansion.channel))
    width = request.width or limit
    if width > limit:
        best = _solve_pair(limit, connections, expansion, request.branch)
        at = f" ({_pair_text(*best)})" if best else ""
        raise UserError(
            f"width={width}: the widest mixer with connections={connections} and {expansion} is {limit}{at}. "
            "Lower width, or raise connections"
        )
    pair = _solve_pair(width, connections, expansion, request.branch)
    if pair is None:
        raise _no_pair(request, width, connections, expansion)
    return _shape_of(expansion, *pair, width, connections)


def _shape_of(
    expansion: Expansion, tokens: int, channels: int, width_target: int | None, connections_target: int | None
) -> Shape:
    token_hidden, channel_hidden = expansion.sizes(tokens, channels)
    connections = Fraction(expansion.twice_connections(tokens, channels), 2)
    hidden_width = max(channels * token_hidden, tokens * channel_hidden) if expansion.hidden else tokens * channels
    factor = float(expansion.token)
    if expansion.token != expansion.channel:  # the one factor that gives the same formula with gamma·(S + C)
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
        connections_target=connections_target or round(connections),
    )


def _check_agreement(request: Request, expansion: Expansion, tokens: int, channels: int) -> None:
    pair = _pair_text(tokens, channels)
    if request.width is not None and relative(tokens * channels, request.width) > TOLERANCE:
        raise UserError(f"width={request.width}: contradicts {pair}, whose width is {tokens * channels}; leave one out")
    has = Fraction(expansion.twice_connections(tokens, channels), 2)
    if request.connections is not None and relative(has, request.connections) > TOLERANCE:
        freed = " or, with expansion=auto, let the expansion follow" if expansion.hidden else ""
        raise UserError(
            f"connections={request.connections}: contradicts {pair} with {expansion}, "
            f"which has {float(has):.12g}; leave connections out (connections=auto){freed}"
        )


def _complete(expansion: Expansion, connections: int, tokens: int | None, channels: int | None) -> tuple[int, int]:
    """The pair with the missing one of tokens and channels, or the refusal that names the nearest that has one."""
    name, known = ("tokens", tokens) if tokens is not None else ("channels", channels)
    assert known is not None
    pair = _completed(expansion, connections, name, known)
    if pair is not None:
        return pair
    nearest = _nearest_side(expansion, connections, name, known)
    raise UserError(
        f"{name}={known}: no mixer with {expansion} comes within 2% of connections={connections} there; "
        + (f"the nearest {name} with one: {nearest}" if nearest else "raise connections")
    )


def _completed(expansion: Expansion, connections: int, name: str, known: int) -> tuple[int, int] | None:
    """The other side is the rounded root of g_t·C·S² + g_c·C²·S = 2·Omega; None where that is off by over 2%."""
    own, other = (expansion.token, expansion.channel)
    if name == "tokens":
        own, other = other, own
    # own·known·x² + other·known²·x = 2·Omega; compare at the half-integers to round exactly
    start = (math.sqrt(float(other) ** 2 * known**2 + 8 * float(own) * connections / known) - float(other) * known) / (
        2 * float(own)
    )

    def below(x: Fraction) -> bool:
        return own * known * x * x + other * known**2 * x <= 2 * connections

    root = max(0, round(start))
    while root and not below(Fraction(2 * root - 1, 2)):
        root -= 1
    while below(Fraction(2 * root + 1, 2)):
        root += 1
    pair = (known, root) if name == "tokens" else (root, known)
    if root and relative(expansion.twice_connections(*pair), 2 * connections) <= TOLERANCE:
        return pair
    return None


def _nearest_side(expansion: Expansion, connections: int, name: str, known: int) -> int | None:
    """The value of tokens or channels nearest to ``known`` for which a Mixer with these connections exists."""
    sides = set()
    for branch in ("tall", "wide"):
        for tokens, channels in _pairs_near(connections, expansion, branch):
            sides.add(tokens if name == "tokens" else channels)
    by_distance = sorted(sides, key=lambda side: (abs(side - known), side))
    return next((side for side in by_distance if _completed(expansion, connections, name, side)), None)


def _sides(branch: str, narrow: int, long: int) -> tuple[int, int]:
    """(tokens, channels) of a tall (tokens >= channels) or wide pair."""
    return (long, narrow) if branch == "tall" else (narrow, long)


def _near(connections: int, expansion: Expansion, branch: str, narrow: int, longs: range) -> range:
    """Those of the long sides whose connections lie within 2% (connections rise with the side)."""

    def twice(long: int) -> int:
        return expansion.twice_connections(*_sides(branch, narrow, long))

    low = math.ceil(2 * connections * (1 - TOLERANCE))
    high = math.floor(2 * connections * (1 + TOLERANCE))
    return longs[bisect_left(longs, low, key=twice) : bisect_right(longs, high, key=twice)]


def _ranges_near(connections: int, expansion: Expansion, branch: str) -> Iterator[tuple[int, range]]:
    """Every narrow side with the long sides whose connections lie within 2%."""
    high = math.floor(2 * connections * (1 + TOLERANCE))
    for narrow in itertools.count(1):
        if expansion.twice_connections(narrow, narrow) > high:
            return
        yield narrow, _near(connections, expansion, branch, narrow, range(narrow, high // (2 * narrow) + 1))


def _pairs_near(connections: int, expansion: Expansion, branch: str) -> Iterator[tuple[int, int]]:
    for narrow, longs in _ranges_near(connections, expansion, branch):
        for long in longs:
            yield _sides(branch, narrow, long)


@lru_cache(maxsize=4096)
def _solve_pair(width: int, connections: int, expansion: Expansion, branch: str) -> tuple[int, int] | None:
    """The integer pair with the smallest larger relative error of S·C against width and Omega against connections.

    Ties go to the smaller error in Omega, then to the smaller |S - C|. None where that error exceeds 2%.
    """

    def errors(pair: tuple[int, int]) -> tuple[Fraction, Fraction, int]:
        tokens, channels = pair
        of_width = relative(tokens * channels, width)
        of_connections = relative(expansion.twice_connections(tokens, channels), 2 * connections)
        return max(of_width, of_connections), of_connections, abs(tokens - channels)

    best: tuple[int, int] | None = None
    low, high = width * (1 - TOLERANCE), width * (1 + TOLERANCE)
    for narrow in range(1, math.isqrt(math.floor(high)) + 1):
        within = range(max(narrow, math.ceil(low / narrow)), math.floor(high / narrow) + 1)
        longs = _near(connections, expansion, branch, narrow, within)

        def rises(long: int, narrow: int = narrow) -> bool:
            return errors(_sides(branch, narrow, long))[0] <= errors(_sides(branch, narrow, long + 1))[0]

        # each error falls and then rises with the long side, and so does the larger: two sides at most share its least
        turn = bisect_left(longs[:-1], True, key=rises)
        for long in longs[turn : turn + 2]:
            pair = _sides(branch, narrow, long)
            if best is None or errors(pair) < errors(best):
                best = pair
    return best


def _no_pair(request: Request, width: int, connections: int, expansion: Expansion) -> UserError:
    """The refusal where no pair lies within 2%, with the nearest width or the nearest connections that has one."""
    limit = widest(connections, float(expansion.token), float(expansion.channel))
    near = [(s, c) for s, c in _pairs_near(connections, expansion, request.branch) if s * c <= limit]
    asked = f"width={width}" if request.width is not None else f"connections={connections}"
    if near:
        tokens, channels = min(near, key=lambda pair: (abs(pair[0] * pair[1] - width), abs(pair[0] - pair[1])))
        fits = f"the nearest width with one: {tokens * channels} ({_pair_text(tokens, channels)})"
    else:
        nearest = _nearest_connections(request, connections, expansion)
        fits = f"the nearest connections with one: {nearest}" if nearest else "give tokens and channels instead"
    return UserError(
        f"{asked}: no mixer with {expansion} comes within 2% of width={width} and connections={connections}; {fits}"
    )


def _nearest_connections(request: Request, connections: int, expansion: Expansion) -> int | None:
    """The connections nearest to those asked for at which a Mixer of the asked width (or the widest) exists.

    Only small networks leave the 2% around some connections empty, so a few small pairs are all that can be near.
    """
    found = set()
    for narrow in range(1, 33):
        for long in range(narrow, max(request.width or 0, 33) // narrow + 1):
            twice = expansion.twice_connections(*_sides(request.branch, narrow, long))
            low, high = Fraction(twice, 2) / (1 + TOLERANCE), Fraction(twice, 2) / (1 - TOLERANCE)
            found |= {math.ceil(Fraction(twice, 2)), min(max(connections, math.ceil(low)), math.floor(high))}
    for has in sorted(found - {0}, key=lambda has: (abs(has - connections), has)):
        limit = widest(has, float(expansion.token), float(expansion.channel))
        width = request.width or limit
        if width <= limit and _solve_pair(width, has, expansion, request.branch):
            return has
    return None


def _pair_text(tokens: int, channels: int) -> str:
    return f"tokens=channels={tokens}" if tokens == channels else f"tokens={tokens}, channels={channels}"
