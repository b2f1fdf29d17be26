"""Layers that are products of factors: what is met is met within 2%, and what is refused names what is met."""

import pytest

from mixersweep.budget import BTT, Architecture, Blocks, Butterfly, LowRank, Request, solve
from mixersweep.errors import Infeasible

MOST = 0.02 + 1e-12
KINDS = {
    "block_diagonal": Blocks(),
    "btt": BTT(1),
    "btt of rank 3": BTT(3),
    "butterfly": Butterfly(None),
    "butterfly of 3 factors": Butterfly(3),
    "low_rank": LowRank(),
}


def solved(name: str, **asked: object) -> Architecture:
    return solve(Request(structure="product", factored=KINDS[name], **asked))


@pytest.mark.parametrize("connections", [2**11, 20480, 2**15, 2**18, 10**7])
@pytest.mark.parametrize("name", KINDS)
def test_without_a_width_every_budget_is_met(name: str, connections: int) -> None:
    found = solved(name, connections=connections)
    assert found.residual <= MOST and found.width == found.width_target
    assert found.connections_target == connections
    assert found.total_connections == found.mixing_parameters == 8 * found.connections
    again = solved(name, connections=found.connections, width=found.width)
    assert (again.width, again.connections, again.residual) == (found.width, found.connections, 0)


@pytest.mark.parametrize("connections", [2**11, 2**15, 2**18])
@pytest.mark.parametrize("name", KINDS)
def test_a_width_is_met_or_refused_with_one_that_is(name: str, connections: int) -> None:
    met = 0
    for width in range(round(connections**0.5), connections, connections // 6):
        asked = {"connections": connections, "width": width}
        try:
            found = solved(name, **asked)
            met += 1
        except Infeasible as refusal:
            assert str(refusal).startswith(f"width={width}: ")
            assert f"connections={connections} the nearest width is {refusal.nearest['width']}" in str(refusal)
            found = solved(name, **{**asked, **refusal.nearest})
        assert found.residual <= MOST
        assert (found.connections_target, found.weights) == (connections, found.connections)
    assert met < 6


@pytest.mark.parametrize("name", KINDS)
def test_weights_and_flops_are_budgets_too(name: str) -> None:
    weights = solved(name, budget="parameters", weights=5000)
    assert weights.weights_target == 5000 and weights.residual <= MOST
    flops = solved(name, budget="flops", flops=10**6, head="signed_groups")
    assert flops.flops_target == 10**6 and flops.residual <= MOST
    real = solved(name, count="real", connections=5000)
    assert real.connections_real == real.connections and abs(real.connections_real / 5000 - 1) <= MOST
    with pytest.raises(Infeasible, match="with flops=200000 the nearest width is") as refusal:
        solved(name, budget="flops", flops=200000, width=5000)
    near = refusal.value.nearest["width"]
    assert solved(name, budget="flops", flops=200000, width=near).residual <= MOST


@pytest.mark.parametrize("width", [3, 4, 31, 1000, 1001])
@pytest.mark.parametrize("rank", [1, 2, 7, 15])
def test_low_rank_has_two_factors_and_a_diagonal(width: int, rank: int) -> None:
    connections = 2 * width * rank + width
    if connections > width * width:
        return
    found = solved("low_rank", width=width, connections=connections)
    assert (found.width, found.connections) == (width, connections)
    assert LowRank().rank(width, connections) == rank


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (16, 3), (33, 32), (64, 64)])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_block_tensor_train_has_a_mixers_shape(rows: int, columns: int, rank: int) -> None:
    """Its two factors of rank 1 are those of the Monarch matrix of as many tokens and channels."""
    width, connections = rows * columns, rank * rows * columns * (rows + columns)
    if connections > width**2:
        return
    kind = BTT(rank)
    found = solve(Request(structure="product", factored=kind, width=width, connections=connections))
    assert (found.width, found.connections) == (width, connections)
    assert kind.shape(width, connections) == (rows, columns)
    monarch = solve(Request(structure="block_diagonal", tokens=rows, channels=columns))
    assert connections == rank * 2 * monarch.connections


@pytest.mark.parametrize("power", [3, 7, 10, 12])
@pytest.mark.parametrize("radix", [2, 3, 4])
def test_a_butterfly_of_one_radix_is_found_from_its_width_and_connections(radix: int, power: int) -> None:
    width = radix**power
    kind = Butterfly(power)
    found = solve(Request(structure="product", factored=kind, width=width, connections=power * width * radix))
    assert (found.width, found.connections) == (width, power * width * radix)
    assert kind.radices(found.width, int(found.connections)) == (radix,) * power


def test_a_butterfly_takes_as_many_factors_as_fit_and_the_most_equal_radices() -> None:
    def radices(kind: Butterfly, **asked: int) -> tuple[int, ...]:
        found = solve(Request(structure="product", factored=kind, **asked))
        return kind.radices(found.width, int(found.connections))

    assert radices(Butterfly(None), width=1024, connections=20480) == (2,) * 10
    assert radices(Butterfly(5), width=1024, connections=20480) == (4,) * 5
    assert radices(Butterfly(None), connections=2**15) == (2,) * 9 + (3,)
    assert radices(Butterfly(3), width=1000, connections=30000) == (10, 10, 10)
    with pytest.raises(Infeasible, match=r"width=4096: a butterfly layer has width·\(sum of the 5 radices") as refusal:
        radices(Butterfly(5), width=4096, connections=2**16)
    assert refusal.value.nearest["width"] < 4096
    with pytest.raises(Infeasible, match="none is within 2% of that; the nearest has connections=98304 at width=4096"):
        radices(Butterfly(12), connections=2**16)


def test_a_rank_that_leaves_no_width_is_refused_with_the_nearest_connections() -> None:
    with pytest.raises(Infeasible, match=r"with model.rank=4, .* the nearest has connections=4096 at width=64"):
        solve(Request(structure="product", factored=BTT(4), connections=2048))
