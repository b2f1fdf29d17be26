"""``count=real`` and ``budget=flops``: the same rule on what is really there, exact, and refused with what fits."""

from fractions import Fraction

import pytest

from mixersweep.budget import Request, solve
from mixersweep.budget.expansion import Expansion
from mixersweep.budget.rules import Real, rule_of
from mixersweep.errors import Infeasible, UserError

REAL = {"structure": "kronecker", "count": "real", "depth": 2}
FLOPS = {"structure": "kronecker", "budget": "flops", "depth": 2}


def rule(**asked) -> Real:
    request = Request(**{**REAL, **asked})
    hidden = request.hidden
    factor = Fraction(2) if hidden else Fraction(1)
    found = rule_of(request, Expansion(factor, factor, hidden=hidden))
    assert isinstance(found, Real)
    return found


@pytest.mark.parametrize(
    ("asked", "tokens", "channels", "expected"),
    [
        # 26 x 25 over 64 patches: C·S·S0 + S·C² + C·S² + S·C² of two blocks, and the skip's C·S·S0
        ({}, 26, 25, 25 * 26 * 64 + 26 * 25**2 + 25 * 26**2 + 26 * 25**2 + 25 * 26 * 64),
        ({"skip_layer": "auto"}, 64, 5, 2 * (5 * 64**2 + 64 * 5**2)),
        ({"skip_layer": "always"}, 64, 5, 2 * (5 * 64**2 + 64 * 5**2) + 5 * 64 * 64),
        ({"stem": "resize"}, 26, 25, 2 * (25 * 26**2 + 26 * 25**2)),
        ({"budget": "parameters"}, 26, 25, 26 * 64 + 25**2 + 26**2 + 25**2 + 26 * 64),
        ({"budget": "parameters", "structure": "block_diagonal"}, 3, 4, 4 * 3 * 64 + 3 * 16 + 4 * 9 + 3 * 16 + 3 * 64),
        ({"hidden": True}, 3, 4, 4 * 6 * 64 + 4 * 3 * 6 * 3 + 4 * 3 * 4 * 8 + 3 * 4 * 64),
    ],
)
def test_a_count_written_out_by_hand(asked, tokens, channels, expected):
    assert rule(**asked).count(tokens, channels) == expected


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"depth": 1},
        {"patches": 16},
        {"skip_layer": "always"},
        {"hidden": True, "expansion": 2.0},
        {"budget": "parameters"},
        {"budget": "flops", "count": "formula"},
        {"budget": "flops", "head": "signed_groups", "hidden": True, "expansion": 2.0},
    ],
)
def test_no_mixer_within_the_target_is_wider_and_no_pair_nearer(asked):
    """Against every pair of sizes."""
    one = rule(**asked)
    name = "flops" if asked.get("budget") == "flops" else "weights" if "budget" in asked else "connections"
    for target in (700, 1500, 4000):
        goal = target * 50 if name == "flops" else target
        most = one.scale * goal
        pairs = [(s, c) for s in range(1, 260) for c in range(2, 260) if s * c <= 20_000]
        near = [p for p in pairs if Fraction(98, 100) * most <= one.count(*p) <= most]
        if not near:
            with pytest.raises(Infeasible, match="no mixer"):
                solve(Request(**{**REAL, **asked, name: goal}))
            continue
        widest = max(s * c for s, c in near)
        assert one.widest(goal) == widest
        found = solve(Request(**{**REAL, **asked, name: goal}))
        assert found.width == found.width_target == widest
        assert found.residual <= 0.02 + 1e-9
        for width in (round(0.6 * widest), round(0.9 * widest)):
            fits = [
                (max(abs(Fraction(s * c, width) - 1), abs(Fraction(one.count(s, c), most) - 1)), s, c)
                for s, c in pairs
                if s >= c
            ]
            best = min(fits)[0]
            if best > Fraction(2, 100):
                with pytest.raises(Infeasible, match="no mixer"):
                    solve(Request(**{**REAL, **asked, name: goal, "width": width}))
                continue
            found = solve(Request(**{**REAL, **asked, name: goal, "width": width}))
            assert found.tokens >= found.channels
            assert found.residual == pytest.approx(float(best))


def test_shares_are_of_the_widest_there_is():
    whole = solve(Request(**REAL, connections=2**14, skip_layer="always"))
    for name, size in (("channels", whole.channels), ("tokens", whole.tokens)):
        half = solve(Request(**REAL, connections=2**14, skip_layer="always", shares={name: Fraction(1, 2)}))
        assert getattr(half, name) in (size // 2, -(-size // 2))
        assert abs(half.connections_real / 2**14 - 1) <= 0.02
        for structure in ("block_diagonal", "sparse"):
            asked = {**REAL, "structure": structure, "connections": 2**14, "shares": {name: Fraction(1, 2)}}
            same = solve(Request(**asked, skip_layer="always"))
            assert (same.width, same.connections_real_target) == (half.width, 2**14)
            assert same.connections_real == pytest.approx(half.connections_real, abs=0.5)


def test_a_sparse_mlp_takes_the_flops_of_its_mixer():
    asked = {**FLOPS, "flops": 300_000, "head": "signed_groups", "skip_layer": "always"}
    mixer = solve(Request(**asked, width=600))
    sparse = solve(Request(**{**asked, "structure": "sparse"}, width=600, match="mixer"))
    assert (sparse.width, sparse.flops_target) == (mixer.width, 300_000)
    assert abs(sparse.flops_per_image - mixer.flops_per_image) <= 2 * sparse.mixing_layers
    dense = solve(Request(**{**asked, "structure": "dense"}))
    assert dense.residual < 0.01


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({**FLOPS}, "budget=flops: needs flops=..., the FLOPs of an image"),
        ({**FLOPS, "flops": 9**6, "connections": 5}, "connections=5: budget=flops fixes the flops, and connections"),
        ({**REAL, "flops": 9**6}, "flops=531441: budget=connections fixes the connections; set budget=flops"),
        ({**REAL, "density": 0.1, "width": 100}, "density=0.1: is that of square layers, by the formula; with count"),
        ({**REAL, "connections": 2**14, "width": 5000}, "width=5000: the widest mixer with connections=16384 (count="),
        ({**REAL, "connections": 2**14, "tokens": 60, "channels": 60}, "connections=16384: contradicts tokens=channe"),
        (
            {"structure": "sparse", "budget": "flops", "flops": 1000, "width": 500},
            "flops=1000: stem and head of an mlp of width=500 take 16544 of them; raise flops to 16560",
        ),
    ],
)
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(UserError) as refusal:
        solve(Request(**asked))
    assert said in str(refusal.value)
