"""What heads read: as many features whatever the family and width with a head of groups, and never a constant."""

import pytest

from mixersweep.budget import Architecture, Request, check_readout
from mixersweep.budget import solve as solve_sizes
from mixersweep.errors import Infeasible, UserError


def solve(request: Request) -> Architecture:
    """With what is refused of a head."""
    solved = solve_sizes(request)
    check_readout(request, solved)
    return solved


FAMILIES = {"kronecker": {}, "block_diagonal": {}, "sparse": {"width": 700}, "dense": {}}


@pytest.mark.parametrize("structure", FAMILIES)
def test_a_head_of_groups_reads_as_much_in_every_family(structure):
    for head in ("groups", "signed_groups"):
        for dimension in (16, 64, 100):
            asked = {"structure": structure, "connections": 2**14, **FAMILIES[structure]}
            found = solve(Request(**asked, head=head, readout_dimension=dimension))
            assert (found.readout_dimension, found.head_parameters) == (dimension, 10 * dimension)


def test_other_heads_read_what_they_are_made_of():
    mixer = Request(structure="kronecker", tokens=26, channels=25)
    assert solve(mixer).readout_dimension == 25
    sparse = {"structure": "sparse", "width": 650, "connections": 2**14}
    assert solve(Request(**sparse)).readout_dimension == 11
    assert solve(Request(**sparse, head="linear")).readout_dimension == 650


def test_more_groups_than_units_are_refused_with_what_works():
    narrow = {"structure": "dense", "connections": 1024, "head": "signed_groups"}
    with pytest.raises(Infeasible, match=r"model.readout_dimension=64: more groups than the 32 units of width=32") as e:
        solve(Request(**narrow))
    assert "use model.readout_dimension=32 or less" in str(e.value)
    assert solve(Request(**narrow, readout_dimension=32)).readout_dimension == 32


@pytest.mark.parametrize("head", ["pool", "linear"])
def test_a_number_of_groups_belongs_to_a_head_of_groups(head):
    with pytest.raises(UserError, match=r"model.readout_dimension=32: belongs to model.head=groups and signed_groups"):
        solve(Request(structure="kronecker", tokens=26, channels=25, head=head, readout_dimension=32))


def test_a_head_that_starts_constant_is_refused_and_what_it_names_works():
    narrow = {"structure": "dense", "connections": 1024}
    with pytest.raises(Infeasible, match="logits are constant at the start") as e:
        solve(Request(**narrow))
    assert "model.head=signed_groups model.readout_dimension=32, or a width above 64" in str(e.value)
    assert solve(Request(**narrow, head="signed_groups", readout_dimension=32)).width == 32
    assert solve(Request(**narrow, head="linear")).width == 32
    assert solve(Request(structure="sparse", width=65, connections=1024)).readout_dimension == 2
    for head in ("pool", "linear", "signed_groups"):
        with pytest.raises(Infeasible, match="channels=1: the norms make zero of a single channel") as one:
            solve(Request(structure="kronecker", tokens=100, channels=1, head=head))
        assert one.value.nearest == {"channels": 2}
    with pytest.raises(Infeasible, match="the least is channels=2, of a wider network"):
        solve(Request(structure="kronecker", width=255))
