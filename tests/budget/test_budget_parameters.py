"""`budget=parameters`: a fixed mean number of trainable weights in place of connections (Golubeva et al., 2021)."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixersweep.budget import Request, solve
from mixersweep.errors import UserError


def asked(**settings) -> Request:
    return Request(**{"structure": "kronecker", "budget": "parameters", **settings})


@pytest.mark.parametrize("side", [4, 10, 32, 181])
def test_auto_is_the_square_mixer_and_its_width_is_the_number_of_weights(side: int) -> None:
    mixer = solve(asked(weights=side * side))
    assert (mixer.tokens, mixer.channels, mixer.width) == (side, side, side * side)
    assert mixer.weights == mixer.weights_target == mixer.width_target == side * side
    assert mixer.mixing_parameters == 8 * side * side - side * side + 64 * side  # the first token mixing is 64 x side
    assert mixer.connections == side**3 == mixer.connections_target


@settings(max_examples=150, deadline=None)
@given(
    weights=st.integers(50, 3000),
    share=st.floats(0.05, 1),
    branch=st.sampled_from(["tall", "wide"]),
    expansion=st.sampled_from([None, 0.7, 2.0]),
)
def test_no_other_pair_of_integers_is_better(weights: int, share: float, branch: str, expansion: float | None) -> None:
    hidden = {"hidden": True, "expansion": expansion} if expansion else {}
    factor = Fraction(str(expansion or 1))
    width = max(1, round(share * weights / factor))

    def mean_weights(tokens: int, channels: int) -> Fraction:
        sizes = (max(1, round(factor * tokens)), max(1, round(factor * channels))) if expansion else (tokens, channels)
        return Fraction(tokens * sizes[0] + channels * sizes[1], 2)

    def errors(tokens: int, channels: int) -> tuple[Fraction, Fraction, int]:
        of_width = abs(Fraction(tokens * channels, width) - 1)
        of_weights = abs(mean_weights(tokens, channels) / weights - 1)
        return max(of_width, of_weights), of_weights, abs(tokens - channels)

    longest = int((2 * weights * 1.03 / factor) ** 0.5) + 3
    pairs = [
        (long, narrow) if branch == "tall" else (narrow, long)
        for narrow, long in itertools.combinations_with_replacement(range(1, longest + 1), 2)
        if abs(narrow * long - width) * 50 <= width
    ]
    best = min((errors(*pair) for pair in pairs), default=None)
    try:
        mixer = solve(asked(weights=weights, width=width, branch=branch, **hidden))
    except UserError as error:
        beyond = width > round(weights / factor)
        assert beyond or best is None or best[0] > Fraction(2, 100)
        assert f"weights={weights}" in str(error)
        return
    assert best is not None
    assert errors(mixer.tokens, mixer.channels) == best
    assert mixer.weights == mean_weights(mixer.tokens, mixer.channels)


@pytest.mark.parametrize(("given", "other"), [("tokens", "channels"), ("channels", "tokens")])
def test_one_side_and_the_weights_fix_the_other(given: str, other: str) -> None:
    mixer = solve(asked(weights=1000, **{given: 40}))
    assert getattr(mixer, other) == 20  # 40² + 20² = 2000
    with pytest.raises(UserError, match=f"{given}=45: no mixer .* weights=1000 there; the nearest {given} with one"):
        solve(asked(weights=1000, **{given: 45}))


def test_where_nothing_is_shared_weights_are_connections() -> None:
    untied = solve(asked(structure="block_diagonal", weights=32768))
    assert (untied.tokens, untied.channels, untied.connections, untied.weights) == (32, 32, 32768, 32768)
    sparse = solve(asked(structure="sparse", weights=1024, width=200))
    assert (sparse.width, sparse.connections, sparse.weights_target) == (200, 1024, 1024)
    assert solve(asked(structure="sparse", weights=1024)).width == 256  # mean fan-in 4
    assert solve(asked(structure="dense", weights=1024)).width == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": None}, "budget=parameters: needs weights="),
        ({"weights": 1000, "connections": 5}, "connections=5: budget=parameters fixes the weights"),
        ({"weights": 1000, "density": 0.5}, "density=0.5: budget=parameters fixes the weights"),
        ({"weights": 1000, "budget": "connections"}, "weights=1000: budget=connections fixes the connections"),
        ({"weights": 1024, "width": 1100}, r"the widest mixer with weights=1024 and expansion=1 is 1024 \(tokens=chan"),
        ({"weights": 1000, "tokens": 10, "channels": 10}, "weights=1000: contradicts tokens=channels=10"),
        ({"weights": 9, "width": 2}, "width=2: no mixer"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        solve(asked(**settings))
