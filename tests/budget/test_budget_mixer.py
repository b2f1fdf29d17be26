"""The rule for Mixers, against plain fractions and a search over all integer pairs.

With S tokens, C channels and expansions g_t, g_c: h_t = max(1, round(g_t·S)), h_c = max(1, round(g_c·C)),
Omega = C·S·(h_t + h_c)/2 (a single-layer Mixer has h_t = S, h_c = C), m = S·C.
"""

import re
from bisect import bisect_left
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixersweep.budget import Request, solve, widest
from mixersweep.errors import UserError

TOLERANCE = Fraction(2, 100)


def request(**asked):
    return Request(structure="kronecker", **asked)


def twice_connections(tokens, channels, expansions):
    if expansions is None:
        return tokens * channels * (tokens + channels)
    hidden = [max(1, round(Fraction(str(g)) * size)) for g, size in zip(expansions, (tokens, channels), strict=True)]
    return tokens * channels * sum(hidden)


def cube_root(value):
    """round(value^(1/3)) by bisection: the only n with (n - 1/2)^3 <= value < (n + 1/2)^3."""
    low, high = 0, 1
    while Fraction(2 * high + 1, 2) ** 3 <= value:
        high *= 2
    while low < high:
        middle = (low + high) // 2
        if Fraction(2 * middle + 1, 2) ** 3 <= value:
            low = middle + 1
        else:
            high = middle
    return low


def bound(connections, expansions):
    factors = expansions or (1, 1)
    return max(1, cube_root(Fraction(connections**2) / (Fraction(str(factors[0])) * Fraction(str(factors[1])))))


def errors(tokens, channels, width, connections, expansions):
    """The order of the rule: the larger relative error, then that of Omega, then |S - C|."""
    of_width = abs(Fraction(tokens * channels, width) - 1)
    of_connections = abs(Fraction(twice_connections(tokens, channels, expansions), 2 * connections) - 1)
    return max(of_width, of_connections), of_connections, abs(tokens - channels)


def best_errors(width, connections, expansions, branch):
    """The least errors of all integer pairs of a branch."""
    pairs = (
        (tokens, channels)
        for tokens in range(1, width * 2 + 1)
        for channels in range(width * 49 // 50 // tokens, (width * 51 // 50) // tokens + 2)
        if channels and (tokens >= channels if branch == "tall" else tokens <= channels)
    )
    return min((errors(*pair, width, connections, expansions) for pair in pairs), default=None)


def keywords(expansions):
    if expansions is None:
        return {}
    token, channel = expansions
    return {"hidden": True, "expansion": None, "token_expansion": token, "channel_expansion": channel}


tenths = st.integers(1, 60).map(lambda tenth: tenth / 10)
two_layer = st.one_of(tenths.map(lambda g: (g, g)), st.tuples(tenths, tenths))
any_expansions = st.one_of(st.none(), two_layer)
branches = st.sampled_from(["tall", "wide"])

# --- (connections, width) ----------------------------------------------------------------------------------------


@settings(max_examples=1500, deadline=None)
@given(connections=st.integers(1, 4000), share=st.integers(1, 110), expansions=any_expansions, branch=branches)
def test_no_integer_pair_is_better_and_refusals_are_exactly_those_beyond_the_bounds(
    connections, share, expansions, branch
):
    limit = bound(connections, expansions)
    width = max(1, limit * share // 100)
    asked = request(connections=connections, width=width, branch=branch, **keywords(expansions))
    least = best_errors(width, connections, expansions, branch)
    if width > limit or least is None or least[0] > TOLERANCE:
        with pytest.raises(UserError, match=rf"width={width}\b"):
            solve(asked)
        return
    found = solve(asked)
    assert errors(found.tokens, found.channels, width, connections, expansions) == least
    assert found.tokens >= found.channels if branch == "tall" else found.tokens <= found.channels
    assert (found.width_target, found.connections_target) == (width, connections)
    assert found.residual == pytest.approx(float(least[0]))


@settings(max_examples=500, deadline=None)
@given(tokens=st.integers(1, 400), channels=st.integers(1, 400), expansions=any_expansions)
def test_the_sizes_of_a_shape_are_those_of_the_formulas(tokens, channels, expansions):
    found = solve(request(tokens=tokens, channels=channels, **keywords(expansions)))
    connections = Fraction(twice_connections(tokens, channels, expansions), 2)
    assert (found.tokens, found.channels, found.width) == (tokens, channels, tokens * channels)
    assert Fraction(found.connections) == connections
    if expansions is None:
        assert found.hidden_width == tokens * channels
        assert found.density == pytest.approx(float(connections / (tokens * channels) ** 2))
    else:
        token_hidden, channel_hidden = found.token_hidden, found.channel_hidden
        assert token_hidden == max(1, round(Fraction(str(expansions[0])) * tokens))
        assert channel_hidden == max(1, round(Fraction(str(expansions[1])) * channels))
        assert found.hidden_width == max(channels * token_hidden, tokens * channel_hidden)
    if expansions and expansions[0] == expansions[1]:
        density = connections / (Fraction(str(expansions[0])) * (tokens * channels) ** 2)
        assert found.density == pytest.approx(float(density))
        assert found.expansion == expansions[0]


@pytest.mark.parametrize(
    ("connections", "width", "pair"),
    [
        (262144, None, (64, 64)),
        (262144, 4096, (64, 64)),
        (262144, 3616, (113, 32)),
        (2**15, None, (32, 32)),
        (2**18, 2768, (173, 16)),
        (2**18, 3984, (83, 48)),
        (2**21, 8064, (504, 16)),
        (2**21, 11072, (346, 32)),
        (2**21, 14464, (226, 64)),
        (2**27, 177408, (1386, 128)),
        (2**27, 231424, (904, 256)),
    ],
)
def test_connections_and_width_give_the_shapes_of_appendix_c4_on_both_branches(connections, width, pair):
    tall, wide = (solve(request(connections=connections, width=width, branch=branch)) for branch in ("tall", "wide"))
    assert (tall.tokens, tall.channels) == pair
    assert (wide.channels, wide.tokens) == pair


def test_nothing_asked_is_the_widest_mixer_with_two_to_the_fifteen_connections():
    found = solve(request())
    assert (found.tokens, found.channels, found.width_target, found.connections_target) == (32, 32, 1024, 2**15)


# --- the bounds, exactly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 3, 10, 64, 99, 100, 1000, 4641, 99_999, 100_000, 10**8 + 1, 10**9 - 1])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_the_widest_mixer_is_exact_at_perfect_cubes_and_beside_them(side, off):
    """Cubes up to 10^15 and far beyond floating point: (n³)^(2/3) is n² and not one less, however large."""
    connections = side**3 + off
    assert widest(connections) == bound(connections, None)
    if off == 0:
        assert widest(connections) == side**2


@settings(max_examples=500, deadline=None)
@given(connections=st.integers(1, 10**15), expansions=two_layer)
def test_the_widest_mixer_rounds_the_exact_root(connections, expansions):
    """m = Omega^(2/3)/(g_t·g_c)^(1/3), at g_t·S = g_c·C."""
    assert widest(connections, *expansions) == bound(connections, expansions)


@pytest.mark.parametrize("side", [8, 20, 64, 200])
@pytest.mark.parametrize("expansion", [1, 2, 4])
def test_widths_up_to_the_bound_are_solved_and_the_next_is_refused(side, expansion):
    connections = expansion * side**3
    asked = {"connections": connections, "hidden": True, "expansion": expansion}
    assert solve(request(**asked, width=side**2)).tokens == side
    with pytest.raises(UserError, match=rf"width={side**2 + 1}: the widest mixer .* is {side**2} \("):
        solve(request(**asked, width=side**2 + 1))


def test_the_refusal_of_too_wide_a_mixer_names_the_widest():
    with pytest.raises(UserError) as refusal:
        solve(request(connections=262144, width=5000))
    assert (
        "the widest mixer with connections=262144 and expansion=1 is 4096 (tokens=channels=64)" in refusal.value.args[0]
    )


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"tokens": 10, "channels": 10, "connections": 1020}, True),  # 1000/1020 lies 1.96% below
        ({"tokens": 10, "channels": 10, "connections": 1021}, False),  # 2.06%
        ({"tokens": 10, "channels": 10, "connections": 981}, True),
        ({"tokens": 10, "channels": 10, "connections": 980}, False),  # 2.04% above
        ({"tokens": 7, "channels": 7, "width": 50}, True),  # exactly 2% below
        ({"tokens": 17, "channels": 3, "width": 50}, True),  # exactly 2% above
        ({"tokens": 13, "channels": 4, "width": 50}, False),  # 4%
        ({"tokens": 7, "channels": 7, "connections": 350}, True),  # exactly 2% below
        ({"tokens": 5, "channels": 12, "connections": 500}, True),  # 510: exactly 2% above
        ({"tokens": 5, "channels": 12, "connections": 499}, False),
    ],
)
def test_two_percent_is_the_last_that_is_accepted(asked, fits):
    if fits:
        assert solve(request(**asked)).tokens == asked["tokens"]
    else:
        with pytest.raises(UserError, match="contradicts"):
            solve(request(**asked))


@pytest.mark.parametrize(
    ("connections", "width", "pair"),
    [
        (500, 60, (12, 5)),  # 510 connections: exactly 2% above
        (349, 50, (7, 7)),  # width 49: exactly 2% below
        (449, 56, None),  # the best pair is off by 2.004%
        (799, 53, None),  # by 2.003%
    ],
)
def test_two_percent_is_the_last_that_a_solved_width_is_accepted_at(connections, width, pair):
    if pair:
        found = solve(request(connections=connections, width=width))
        assert errors(found.tokens, found.channels, width, connections, None)[0] == TOLERANCE
        assert (found.tokens, found.channels) == pair
    else:
        with pytest.raises(UserError, match="comes within 2%"):
            solve(request(connections=connections, width=width))


def _solves(asked):
    try:
        solve(asked)
    except UserError:
        return False
    return True


# --- every sufficient set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "channels"), [(3, 10**18), (10**18, 3), (10**17 + 1, 1), (10**17 + 9, 10**17 - 9)])
def test_sizes_beyond_floating_point_are_exact(tokens, channels):
    connections = tokens * channels * (tokens + channels) // 2
    for known in ({"tokens": tokens}, {"channels": channels}):
        found = solve(request(connections=connections, **known))
        assert (found.tokens, found.channels) == (tokens, channels)


C2 = {4: 360, 8: 252, 12: 203, 16: 173, 20: 152, 24: 136, 28: 124, 32: 113, 36: 104, 40: 96, 44: 89, 48: 83, 64: 64}


@pytest.mark.parametrize(("channels", "tokens"), C2.items())
def test_connections_and_channels_give_the_pairs_of_appendix_c2(channels, tokens):
    """Omega = 2^19, expansion 2 (Fig. 4): the tokens are the rounded root."""
    found = solve(request(connections=2**19, channels=channels, hidden=True, expansion=2))
    assert (found.tokens, found.channels, found.width) == (tokens, channels, tokens * channels)


@settings(max_examples=500, deadline=None)
@given(connections=st.integers(1, 10**7), known=st.integers(1, 3000), expansions=any_expansions)
@pytest.mark.parametrize("name", ["tokens", "channels"])
def test_connections_and_one_side_round_the_other_exactly(name, connections, known, expansions):
    """The other side x solves own·known·x² + other·known²·x = 2·Omega; round(x) is the last half-integer below."""
    asked = request(connections=connections, **{name: known}, **keywords(expansions))
    factors = [Fraction(str(g)) for g in (expansions or (1, 1))]
    other, own = factors if name == "tokens" else reversed(factors)

    def above(x):
        return own * known * x * x + other * known**2 * x > 2 * connections

    root = bisect_left(range(10**8), True, key=lambda n: above(n + Fraction(1, 2)))
    pair = (known, root) if name == "tokens" else (root, known)
    exists = root and abs(Fraction(twice_connections(*pair, expansions), 2 * connections) - 1) <= TOLERANCE
    assert _solves(asked) == bool(exists)
    if exists:
        found = solve(asked)
        assert (found.tokens, found.channels) == pair


@pytest.mark.parametrize(
    "asked",
    [
        {"connections": 2**18, "width": 3616},
        {"connections": 2**18, "tokens": 113},
        {"connections": 2**18, "channels": 32},
        {"tokens": 113, "channels": 32},
        {"width": 3616, "density": 262160 / 3616**2},
        {"connections": 2**18, "density": 2**18 / 3616**2},
        {"width": 3616, "tokens": 113},
        {"width": 3616, "channels": 32},
        {"width": 3616, "channels": 32, "connections": 2**18},
        {"connections": 2**18, "width": 3616, "density": 2**18 / 3616**2},
        {"tokens": 113, "channels": 32, "density": 262160 / 3616**2},
    ],
    ids=lambda asked: "+".join(asked),
)
def test_every_sufficient_set_means_the_same_network(asked):
    found = solve(request(**asked))
    assert (found.tokens, found.channels, found.connections) == (113, 32, 262160)


def test_density_alone_takes_the_default_connections():
    found = solve(request(density=2**15 / 1024**2))
    assert (found.tokens, found.channels, found.connections) == (32, 32, 2**15)


@pytest.mark.parametrize(("tokens", "channels", "expansion"), [(64, 64, 2), (16, 986, 4), (113, 32, 0.5)])
def test_tokens_channels_and_connections_give_the_expansion(tokens, channels, expansion):
    """g = 2·Omega/(C·S·(S + C)) (appendix D.3)."""
    connections = int(expansion * tokens * channels * (tokens + channels) / 2)
    asked = {"tokens": tokens, "channels": channels, "connections": connections}
    found = solve(request(**asked, hidden=True, expansion=None))
    assert found.expansion == pytest.approx(expansion)
    assert found.connections == pytest.approx(connections, rel=0.02)


def test_one_expansion_set_apart_leaves_the_other_to_expansion():
    found = solve(request(tokens=10, channels=20, hidden=True, expansion=2, token_expansion=0.5))
    assert (found.token_hidden, found.channel_hidden) == (5, 40)
    assert found.expansion == pytest.approx((0.5 * 10 + 2 * 20) / 30)


# --- contradictory and insufficient sets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"tokens": 32, "channels": 32, "width": 2048}, ["width=2048", "tokens=channels=32", "1024"]),
        ({"tokens": 32, "channels": 16, "connections": 2**15}, ["connections=32768", "channels=16"]),
        ({"tokens": 10, "width": 1000, "connections": 2**15}, ["connections=32768", "tokens=10", "55000"]),
        ({"tokens": 10, "width": 1005}, ["width=1005", "tokens=10", "1000"]),
        ({"channels": 10, "width": 1005}, ["width=1005", "channels=10", "1000"]),
        ({"tokens": 1024, "width": 100}, ["width=100", "tokens=1024"]),
        ({"width": 1024, "connections": 2**15, "density": 0.1}, ["density=0.1", "width=1024", "connections=32768"]),
        ({"expansion": 2.0}, ["expansion=2", "model.hidden=true"]),
        ({"token_expansion": 3.0}, ["token_expansion=3"]),
        ({"hidden": True, "expansion": None, "tokens": 32}, ["expansion=auto", "channels and connections are not set"]),
        (
            {"hidden": True, "expansion": None, "tokens": 32, "channels": 32},
            ["expansion=auto", "connections is not set"],
        ),
        (
            {"hidden": True, "expansion": 2, "tokens": 32, "channels": 32, "connections": 2**15},
            ["connections=32768", "expansion=auto"],
        ),
        ({"hidden": True, "expansion": 2, "token_expansion": 3, "width": 9999}, ["expansions 3 (tokens) and 2 "]),
        ({"tokens": 64, "channels": 8, "skip_layer": "never", "patches": 49}, ["skip_layer=never", "tokens=49"]),
    ],
)
def test_contradictory_and_insufficient_sets_are_refused_by_name(asked, names):
    with pytest.raises(UserError) as refusal:
        solve(request(**asked))
    message = refusal.value.args[0]
    assert "\n" not in message
    assert [name for name in names if name not in message] == []


SUGGESTION = re.compile(
    r"the nearest (?P<setting>width|connections|tokens|channels) with one: (?P<value>\d+)"
    r"|(?P<widest>)is (?P<limit>\d+)(?: \(.*\))?\. Lower width"
)


def follow(asked, message):
    """The request with what the refusal suggests in place of what was refused."""
    said = SUGGESTION.search(message)
    assert said, message
    return {**asked, said["setting"] or "width": int(said["value"] or said["limit"])}


def best_of_small(connections, expansions, asked):
    """The least error of Omega among small pairs of the asked width, or of any where a side was asked for."""
    sides = range(1, 41)
    return min(
        abs(Fraction(twice_connections(tokens, channels, expansions), 2 * connections) - 1)
        for tokens in sides
        for channels in sides
        if "width" not in asked or tokens * channels == asked["width"]
    )


@settings(max_examples=300, deadline=None)
@given(
    connections=st.integers(1, 100_000),
    width=st.integers(1, 3000),
    known=st.integers(1, 600),
    expansions=any_expansions,
    branch=branches,
)
@pytest.mark.parametrize("name", ["width", "tokens", "channels", None])
def test_what_a_refusal_suggests_works(name, connections, width, known, expansions, branch):
    asked = {"connections": connections, "branch": branch, **keywords(expansions)}
    if name:
        asked[name] = width if name == "width" else known
    try:
        solve(request(**asked))
    except UserError as refusal:
        message = refusal.args[0]
    else:
        return
    if message.endswith(("raise connections", "give tokens and channels instead")) and "Lower width" not in message:
        if all(Fraction(str(g)).denominator == 1 for g in expansions or ()):  # no rounded hidden sizes
            assert best_of_small(connections, expansions, asked) > TOLERANCE, "there was something to suggest"
        return
    then = follow(asked, message)
    if "Lower width" in message and "tokens" not in message.partition("is ")[2]:
        return  # the bound itself has no integer pair: it is a bound, and no offer
    solve(request(**then))


@pytest.mark.parametrize("connections", [2, 4, 5, 7, 9, 10, 11, 13, 14, 20, 33])
@pytest.mark.parametrize("expansion", [1, 2])
def test_where_auto_finds_nothing_the_nearest_connections_that_has_a_mixer_is_named(connections, expansion):
    def asked(connections):
        return request(connections=connections, hidden=True, expansion=expansion)

    if _solves(asked(connections)):
        return
    with pytest.raises(UserError) as refusal:
        solve(asked(connections))
    said = SUGGESTION.search(refusal.value.args[0])
    if said["setting"] == "width":  # these connections have a Mixer, a little narrower than the widest
        assert solve(request(connections=connections, width=int(said["value"]), hidden=True, expansion=expansion))
        return
    named = int(said["value"])
    others = [other for other in range(1, 3 * connections) if _solves(asked(other))]
    assert abs(named - connections) == min(abs(other - connections) for other in others)
