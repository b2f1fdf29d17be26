"""What families say of themselves, held against what is built and drawn."""

from collections.abc import Mapping
from typing import get_args

import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.families import FAMILIES, look_of, matrix_rank_of, order_of
from mixersweep.families.base import Colour, Dash, Marker
from mixersweep.figures.palette import COLOURS, DASHES, SHAPES, SPARE, looks
from mixersweep.layers import LowRank, linear_maps
from mixersweep.models import build
from mixersweep.models.parts import Block
from mixersweep.runs import solve

SMALL: Mapping[str, list[str]] = {
    "block_diagonal": ["width=30", "connections=150"],
    "btt": ["width=30", "connections=330"],
    "butterfly": ["width=30", "connections=300"],
    "low_rank": ["width=30", "connections=150"],
    "shallow_monarch": [],
    "shallow_kronecker": [],
    "golubeva_mlp": ["model.weights_total=1000"],
    "golubeva_resnet18": ["model.base_width=8"],
    "s_fc": ["model.alpha=1"],
}
SIZES = ["tokens=8", "channels=4"]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_has_skips_where_its_network_has_blocks(name: str) -> None:
    sizes = ["connections=1000"] if "mlp" in name else ["connections=auto", *SIZES]
    if name.startswith("mixer_"):  # of published sizes, whose tokens are the patches
        sizes.append("model.skip_layer=auto")
    run = solve(config_of([f"model={name}", "data=digits", *SMALL.get(name, sizes)]))
    network = build(run.config, run.architecture)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    assert bool(blocks) == run.config.model.has_skips
    assert all(list(block.residual()) for block in blocks)


def test_every_family_looks_different_and_has_a_place() -> None:
    drawn = looks((name, name) for name in FAMILIES)
    for name in FAMILIES:
        look = look_of(name)
        assert look is not None and drawn[name].colour == COLOURS[look.colour]
    assert set(get_args(Colour)) == set(COLOURS)
    assert set(get_args(Marker)) == set(SHAPES)
    assert set(get_args(Dash)) == set(DASHES)
    shapes = [(look.marker, look.dash) for look in drawn.values()]
    assert len(set(shapes)) == len(shapes), "told apart in grey"
    assert not {(look.colour, look.marker, look.dash) for look in drawn.values()} & set(SPARE)
    assert [order_of(name) for name in FAMILIES] == list(range(len(FAMILIES)))


def test_a_family_that_is_not_here_has_a_spare_look_and_comes_last() -> None:
    assert look_of("elsewhere") is None
    assert order_of("elsewhere") == len(FAMILIES)
    drawn = looks([("elsewhere", "elsewhere")])["elsewhere"]
    assert (drawn.colour, drawn.marker, drawn.dash) in SPARE


def test_settings_that_no_network_of_a_depth_can_have_are_the_familys_to_refuse() -> None:
    with pytest.raises(UserError, match=r"random_blocks=\[4\]: depth=4 has the blocks 0 to 3"):
        config_of(["model=rp_s_mixer", "depth=4", "model.random_blocks=[4]"])


OF_RANK = ("s_mixer", "monarch", "sw_mlp", "hashed", "block_diagonal", "btt", "butterfly", "low_rank", "mlp")


@pytest.mark.parametrize("name", OF_RANK)
def test_its_rank_is_that_of_its_matrices(name: str) -> None:
    sizes = SMALL.get(name, SIZES if "mixer" in name or name == "monarch" else ["connections=400", "width=auto"])
    run = solve(config_of([f"model={name}", "data=digits", *sizes]))
    a = run.architecture
    maps = [m for m in linear_maps(build(run.config, a)) if (m.in_width, m.out_width) == (a.width, a.width)]
    assert maps
    for layer in maps:
        matrix = layer.to_dense().detach()
        if isinstance(layer, LowRank):
            matrix = matrix - torch.diag(layer.factors[1].weight.detach()[:, -1])
        assert torch.linalg.matrix_rank(matrix) == matrix_rank_of(name, a.width, int(a.connections))


def test_of_a_family_that_is_not_here_the_rank_is_full() -> None:
    assert matrix_rank_of("elsewhere", 100, 1000) == 100
