"""Sizes said as shares of the widest Mixer's: the same shapes whatever the budget."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixersweep.budget import Request, solve, solve_layered, widest
from mixersweep.errors import UserError
from mixersweep.families.golubeva import TwoLayerMLP


def mixer(**asked):
    return Request(structure="kronecker", **asked)


def sparse(**asked):
    return Request(structure="sparse", **asked)


def refusal(request):
    with pytest.raises(UserError) as refused:
        solve(request)
    assert "\n" not in refused.value.args[0]
    return refused.value.args[0]


@pytest.mark.parametrize(("connections", "side"), [(2**18, 64), (2**21, 128), (2**27, 512)])
@pytest.mark.parametrize(("share", "of"), [("1/4", 4), ("1/2", 2), ("1", 1)])
def test_shares_of_channels_and_tokens_are_those_of_the_widest_mixer(connections, side, share, of):
    tall = solve(mixer(connections=connections, shares={"channels": Fraction(share)}))
    wide = solve(mixer(connections=connections, shares={"tokens": Fraction(share)}))
    assert tall.channels == wide.tokens == side // of
    assert (tall.tokens, tall.channels) == (wide.channels, wide.tokens)
    alone = solve(mixer(connections=connections, channels=side // of))
    assert (alone.tokens, alone.connections) == (tall.tokens, tall.connections)


@settings(max_examples=200, deadline=None)
@given(
    connections=st.integers(2**16, 2**40),
    percent=st.integers(10, 300),
    expansion=st.sampled_from([0.5, 1, 2, 4]),
    side=st.sampled_from(["tokens", "channels"]),
)
def test_a_share_of_one_side_is_one_ratio_of_both_at_every_budget(connections, percent, expansion, side):
    share = Fraction(percent, 100)
    try:
        found = solve(mixer(connections=connections, hidden=True, expansion=expansion, shares={side: share}))
    except UserError as error:  # too wide for integers to come near
        assert "comes within 2%" in str(error)
        return
    own, other = (found.tokens, found.channels) if side == "tokens" else (found.channels, found.tokens)
    c = float(share)
    assert other / own == pytest.approx((((c**2 + 8 / c) ** 0.5 - c) / 2) / c, rel=1 / own + 1 / other)


@given(connections=st.integers(2**10, 2**40), percent=st.integers(1, 1000))
def test_a_share_of_the_width_is_rounded_once(connections, percent):
    exact = percent / 100 * connections ** (2 / 3)
    try:
        found = solve(sparse(connections=connections, shares={"width": Fraction(percent, 100)}))
    except UserError as error:
        assert "the narrowest that holds them" in str(error)
        assert exact <= connections**0.5 + 1
    else:
        assert found.width == pytest.approx(exact, abs=0.51, rel=1e-9)
        assert (found.width == widest(connections)) or percent != 100


@pytest.mark.parametrize("asked", [{"connections": 2**14}, {"budget": "parameters", "weights": 1024}, {}])
def test_equal_shares_are_equal_targets_for_every_structure(asked):
    one = solve(mixer(**asked, shares={"width": Fraction(1)}))
    assert solve(mixer(**asked)).width == one.width
    assert one.width_target == solve(mixer(**asked)).width_target
    other = solve(sparse(**asked, shares={"width": Fraction(1)}))
    assert other.width_target == one.width_target


def test_of_fixed_parameters_the_widest_has_equal_sides():
    found = solve(mixer(budget="parameters", weights=4096, shares={"channels": Fraction(1)}))
    assert (found.tokens, found.channels) == (64, 64)
    untied = Request(structure="block_diagonal", budget="parameters", weights=4096, shares={"channels": Fraction(1)})
    assert (solve(untied).tokens, solve(untied).channels) == (16, 16)  # 4,096 connections


def test_a_matched_sparse_mlp_takes_the_mixer_of_the_share():
    for shares in ({"channels": Fraction(1, 2)}, {"tokens": Fraction(1, 2)}):
        mixed = solve(mixer(connections=2**14, shares=shares))
        matched = solve(sparse(connections=2**14, shares=shares))
        assert (matched.width, matched.connections) == (mixed.width, mixed.connections)


@pytest.mark.parametrize("fixed", ["tokens", "channels", "density", "width"])
def test_a_share_beside_another_size_is_refused(fixed):
    shares = {"tokens" if fixed == "width" else "width": Fraction(1, 2)}
    message = refusal(mixer(shares=shares, **{fixed: 1 if fixed == "density" else 16}))
    assert message.startswith(f"{next(iter(shares))}=50%: is a share of the widest mixer, where {fixed}=")


def test_a_share_needs_an_expansion():
    assert "depends on the expansion" in refusal(mixer(hidden=True, expansion=None, shares={"width": Fraction(1)}))


def test_of_a_layered_network_the_narrowest_is_the_whole():
    layers = TwoLayerMLP(1, 28, 10, 3970)
    found = solve_layered(Request(structure="layered", depth=1, shares={"width": Fraction(16)}), layers)
    assert found.width == 16 * layers.narrowest == 80
    with pytest.raises(UserError, match="tokens=50%: golubeva_mlp has no setting tokens"):
        solve_layered(Request(structure="layered", shares={"tokens": Fraction(1, 2)}), layers)


def test_tokens_channels_and_a_density_of_its_own_fix_a_sparse_mlp():
    """Fig. 2(a): the width of a Mixer, at densities that are not."""
    asked = {"hidden": True, "expansion": 2, "tokens": 64, "channels": 64}
    found = [solve(sparse(**asked, density=2.0**-n)) for n in range(11)]
    assert [one.width for one in found] == [4096] * 11
    assert [one.connections for one in found] == [2 ** (25 - n) for n in range(11)]
    assert found[6].connections == solve(mixer(**asked)).connections
    assert "contradicts width=4096" in refusal(sparse(**asked, density=0.5, connections=2**19))
