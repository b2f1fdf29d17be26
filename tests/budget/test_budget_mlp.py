"""The rule for MLPs: one width for a dense one, any width with room for its connections for a sparse one."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixersweep.budget import Request, solve, warnings
from mixersweep.errors import UserError


def sparse(**asked):
    return Request(structure="sparse", **asked)


def dense(**asked):
    return Request(structure="dense", **asked)


def refusal(request):
    with pytest.raises(UserError) as refused:
        solve(request)
    assert "\n" not in refused.value.args[0]
    return refused.value.args[0]


# --- sparse ------------------------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(
    connections=st.integers(1, 10**6),
    width=st.integers(1, 5000),
    expansion=st.sampled_from([None, 0.5, 1, 2, 4.1]),
)
def test_a_sparse_mlp_has_exactly_its_connections_at_every_width_that_holds_them(connections, width, expansion):
    """No upper bound on width; the lower one is sqrt(Omega/g)."""
    hidden = {"hidden": True, "expansion": expansion} if expansion else {}

    def room(width):
        return width * (max(1, round(Fraction(str(expansion)) * width)) if expansion else width)

    asked = sparse(connections=connections, width=width, **hidden)
    if room(width) >= connections:
        found = solve(asked)
        assert (found.width, found.connections) == (width, connections)
        assert found.hidden_width == room(width) // width
        assert found.density == pytest.approx(connections / room(width))
        assert (found.tokens, found.channels) == (None, None)
    else:
        message = refusal(asked)
        assert f"width={width}" in message
        assert f"connections={connections}" in message
        least = int(message.rpartition("holds them: ")[2])
        assert room(least - 1) < connections <= room(least)
        assert solve(sparse(connections=connections, width=least, **hidden)).width == least


@pytest.mark.parametrize("expansion", [1, 2, 4])
@pytest.mark.parametrize("connections", [2**15, 2**18, 2**20])
def test_width_auto_takes_the_width_and_connections_of_the_widest_mixer(connections, expansion):
    asked = {"connections": connections, "hidden": True, "expansion": expansion}
    mixer = solve(Request(structure="kronecker", **asked))
    mlp = solve(sparse(**asked))
    assert (mlp.width, mlp.connections) == (mixer.width, mixer.connections)
    assert (mlp.width_target, mlp.connections_target) == (mixer.width_target, mixer.connections_target)


@pytest.mark.parametrize("branch", ["tall", "wide"])
@pytest.mark.parametrize("width", [2768, 3616, 3984, 2000, 4096])
def test_matched_to_a_mixer_it_takes_what_integers_allowed_the_mixer(width, branch):
    asked = {"connections": 2**18, "width": width, "branch": branch}
    mixer = solve(Request(structure="kronecker", **asked))
    matched = solve(sparse(**asked, match="mixer"))
    assert (matched.width, matched.connections) == (mixer.width, mixer.connections)
    assert (matched.width_target, matched.connections_target) == (width, 2**18)
    alone = solve(sparse(**asked))
    assert (alone.width, alone.connections) == (width, 2**18)


@pytest.mark.parametrize("width", [600, 5000, 50_000])
def test_where_there_is_no_mixer_a_matched_mlp_goes_its_own_way(width):
    found = solve(sparse(connections=2**18, width=width, match="mixer"))
    assert (found.width, found.connections, found.width_target) == (width, 2**18, width)


@pytest.mark.parametrize(
    ("asked", "width", "connections"),
    [
        ({"tokens": 113, "channels": 32}, 3616, 262160),
        ({"tokens": 113, "connections": 2**18}, 3616, 262160),
        ({"channels": 32, "connections": 2**18}, 3616, 262160),
        ({"width": 1024, "density": 0.1}, 1024, 104858),
        ({"connections": 2**18, "density": 0.1}, 1619, 2**18),
        ({"connections": 2**18, "density": 0.9}, 540, 2**18),
        ({"width": 1024, "connections": 2**18}, 1024, 2**18),
        ({"tokens": 32, "channels": 32, "connections": 2**16, "hidden": True, "expansion": None}, 1024, 2**16),
    ],
)
def test_every_sufficient_set_fixes_a_sparse_mlp(asked, width, connections):
    """Among them the widths 540 and 1619 of Fig. 5."""
    found = solve(sparse(**asked))
    assert (found.width, found.connections) == (width, connections)


def test_a_sparse_mlp_whose_sizes_contradict_is_refused():
    message = refusal(sparse(width=1024, connections=2**15, density=0.5))
    assert "density=0.5" in message
    assert "0.03125" in message
    assert "expansion=auto" in refusal(sparse(hidden=True, expansion=None, width=1024))


# --- dense -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(connections=st.integers(1, 10**12), expansion=st.sampled_from([None, 0.5, 2, 4.1]))
def test_the_one_width_of_a_dense_mlp_is_the_rounded_square_root(connections, expansion):
    hidden = {"hidden": True, "expansion": expansion} if expansion else {}
    found = solve(dense(connections=connections, **hidden))
    square = connections / Fraction(str(expansion or 1))
    assert found.width == 1 or (found.width - Fraction(1, 2)) ** 2 <= square < (found.width + Fraction(1, 2)) ** 2
    assert found.connections == found.width * found.hidden_width
    assert found.density == 1
    assert found.connections_target == connections


@pytest.mark.parametrize(("connections", "width"), [(None, 181), (2**18, 512), (182**2 - 1, 182), (181 * 182, 181)])
def test_a_dense_mlp_takes_its_one_width_and_refuses_every_other(connections, width):
    assert solve(dense(connections=connections)).width == width
    assert solve(dense(connections=connections, width=width)).width == width
    for other in (width - 1, width + 1, 4096):
        message = refusal(dense(connections=connections, width=other))
        assert f"width={other}" in message
        assert f"the one width {width}" in message
        assert "model=sw_mlp" in message


@pytest.mark.parametrize("asked", [{"density": 0.5}, {"density": 0.5, "width": 181}, {"density": 0.1, "tokens": 9}])
def test_a_dense_mlp_is_dense(asked):
    message = refusal(dense(**asked))
    assert message.startswith(f"density={asked['density']}:")
    assert solve(dense(density=1.0)).width == 181


def test_a_dense_mlp_for_the_sizes_of_a_mixer_has_its_connections():
    assert solve(dense(tokens=64, channels=64)).width == 512


# --- warnings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "warned"), [(9, True), (10, False), (11, False)])
def test_a_mixer_with_fewer_channels_than_classes_has_a_rank_limited_head(channels, warned):
    mixer = solve(Request(structure="kronecker", tokens=64, channels=channels))
    found = warnings(mixer, "kronecker", 10)
    assert len(found) == warned
    if warned:
        assert "channels=9" in found[0]
        assert "10 classes" in found[0]


@pytest.mark.parametrize(("width", "warned"), [(576, True), (577, False)])
def test_an_mlp_with_fewer_embedding_channels_than_classes_has_a_rank_limited_pooled_head(width, warned):
    mlp = solve(sparse(width=width, connections=10 * width))  # 64 patches: 9 or 10 channels
    assert len(warnings(mlp, "sparse", 10)) == warned
    assert warnings(mlp, "sparse", 10, pooled=False) == []
    if warned:
        assert "embedding channels=9 is below the 10 classes" in warnings(mlp, "sparse", 10)[0]


@pytest.mark.parametrize("fan_in", [0.5, 3.9])
@pytest.mark.parametrize("hidden", [{}, {"hidden": True, "expansion": 2}])
def test_a_mean_fan_in_below_four_is_warned_of_with_the_share_of_units_without_input(fan_in, hidden):
    mlp = solve(sparse(width=1500, connections=int(fan_in * 1500 * (2 if hidden else 1)), **hidden))
    (uniform,) = warnings(mlp, "sparse", 10)
    assert f"mean fan-in {fan_in:.3g} is below 4: about {(1 - fan_in / 1500) ** 1500:.1%} of the units" in uniform
    (told,) = warnings(mlp, "sparse", 10, share_without_input=0.123)
    assert "about 12.3% of the units have no input" in told


def test_from_a_mean_fan_in_of_four_on_there_is_no_warning():
    assert warnings(solve(sparse(width=1500, connections=6000)), "sparse", 10) == []
    assert warnings(solve(dense(connections=10**6)), "dense", 10) == []


@pytest.mark.parametrize("connections", [1, 4])
def test_a_full_mask_leaves_no_unit_without_input(connections):
    mlp = solve(sparse(width=math.isqrt(connections), connections=connections))
    (warning,) = warnings(mlp, "sparse", 10, pooled=False)
    assert "about 0.0% of the units" in warning
