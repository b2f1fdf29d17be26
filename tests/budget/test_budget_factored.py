"""Layers that are products of factors: what is met is met within 2%, and what is refused names what is met."""

import pytest

from mixersweep.budget import Architecture, LowRank, Request, solve
from mixersweep.errors import Infeasible

KINDS = {"low_rank": LowRank()}


def solved(name: str, **asked: object) -> Architecture:
    return solve(Request(structure="product", factored=KINDS[name], **asked))


@pytest.mark.parametrize("connections", [2**11, 20480, 2**15, 2**18, 10**7])
@pytest.mark.parametrize("name", KINDS)
def test_without_a_width_every_budget_is_met(name: str, connections: int) -> None:
    found = solved(name, connections=connections)
    assert found.residual <= 0.02 and found.width == found.width_target
    assert found.connections_target == connections
    assert found.total_connections == found.mixing_parameters == 8 * found.connections
    again = solved(name, connections=found.connections, width=found.width)
    assert (again.width, again.connections, again.residual) == (found.width, found.connections, 0)


@pytest.mark.parametrize("connections", [2**11, 2**15, 2**18])
@pytest.mark.parametrize("name", KINDS)
def test_a_width_is_met_or_refused_with_one_that_is(name: str, connections: int) -> None:
    met = 0
    for width in range(round(connections**0.5), connections, connections // 25):
        asked = {"connections": connections, "width": width}
        try:
            found = solved(name, **asked)
            met += 1
        except Infeasible as refusal:
            assert str(refusal).startswith(f"width={width}: ")
            assert f"connections={connections} the nearest width is {refusal.nearest['width']}" in str(refusal)
            found = solved(name, **{**asked, **refusal.nearest})
        assert found.residual <= 0.02
        assert (found.connections_target, found.weights) == (connections, found.connections)
    assert met < 25


@pytest.mark.parametrize("name", KINDS)
def test_weights_and_flops_are_budgets_too(name: str) -> None:
    weights = solved(name, budget="parameters", weights=5000)
    assert weights.weights_target == 5000 and weights.residual <= 0.02
    flops = solved(name, budget="flops", flops=10**6, head="signed_groups")
    assert flops.flops_target == 10**6 and flops.residual <= 0.02
    real = solved(name, count="real", connections=5000)
    assert real.connections_real == real.connections and abs(real.connections_real / 5000 - 1) <= 0.02
    with pytest.raises(Infeasible, match="with flops=200000 the nearest width is") as refusal:
        solved(name, budget="flops", flops=200000, width=5000)
    near = refusal.value.nearest["width"]
    assert solved(name, budget="flops", flops=200000, width=near).residual <= 0.02


@pytest.mark.parametrize("width", [3, 4, 31, 1000, 1001])
@pytest.mark.parametrize("rank", [1, 2, 7, 15])
def test_low_rank_has_two_factors_and_a_diagonal(width: int, rank: int) -> None:
    connections = 2 * width * rank + width
    if connections > width * width:
        return
    found = solved("low_rank", width=width, connections=connections)
    assert (found.width, found.connections) == (width, connections)
    assert LowRank().rank(width, connections) == rank
