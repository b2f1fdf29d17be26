"""Masks of SW-MLPs: the family's settings, and what it warns of, held against masks that are drawn."""

from typing import get_args

import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.config import architecture, warnings
from mixersweep.errors import UserError
from mixersweep.kinds import MaskKind
from mixersweep.layers import SparseWeights
from mixersweep.models import build
from mixersweep.models.branches import mixing_maps
from mixersweep.runs import solve

KINDS = get_args(MaskKind)


@pytest.mark.parametrize("hidden", [[], ["model.hidden=true", "expansion=2"]])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fan_in", [0.5, 1, 2, 3.9])
def test_the_warned_share_of_units_without_input_is_that_of_drawn_masks(
    kind: str, fan_in: float, hidden: list[str]
) -> None:
    """Within five deviations of a drawn mask; of ``local``, whose units differ by where they lie, within .05 more."""
    width, rows = 1200, 2400 if hidden else 1200
    config = config_of(
        [
            *("model=sw_mlp", f"model.mask={kind}", f"width={width}", f"connections={int(fan_in * rows)}"),
            *("match=none", "depth=1", "model.layers_per_block=1", "model.head=linear", *hidden),
        ]
    )
    solved = architecture(config)
    (warning,) = [text for text in warnings(config, solved) if "mean fan-in" in text]
    share = float(warning.partition("about ")[2].partition("%")[0]) / 100
    first = next(iter(mixing_maps(build(config, solved)).values()))
    assert isinstance(first, SparseWeights)
    drawn = float((torch.bincount(first.row_of.long(), minlength=rows) == 0).double().mean())
    groups = rows / (4 if kind == "block" else 1)  # rows of a block have their inputs together
    assert abs(drawn - share) < 5 * (share * (1 - share) / groups) ** 0.5 + 0.0005 + 1 / rows + 0.05 * (kind == "local")


def test_groups_that_do_not_divide_the_inputs_are_refused_with_the_nearest_that_do() -> None:
    with pytest.raises(
        UserError, match=r"model.mask_size=4: model.mask=n_of_m needs .* the 650 inputs of a matrix; the nearest is 5"
    ):
        solve(config_of(["model=sw_mlp", "model.mask=n_of_m", "width=650", "match=none"]))
    solve(config_of(["model=sw_mlp", "model.mask=n_of_m", "width=650", "match=none", "model.mask_size=5"]))


def test_units_of_a_local_mask_see_their_surroundings_on_the_image() -> None:
    run = solve(config_of(["model=sw_mlp", "model.mask=local", "width=700", "match=none", "connections=33000"]))
    network = build(run.config, run.architecture)
    entries = network.get_submodule("entries")
    patch_of = entries.kept // entries.channels  # type: ignore[operator]
    side = int(run.architecture.patches**0.5)
    for layer in mixing_maps(network).values():
        assert isinstance(layer, SparseWeights)
        ends = [patch_of[index.long()] for index in (layer.row_of, layer.column_of)]
        apart = [(of[0] - of[1]).abs().max() for of in ([e // side for e in ends], [e % side for e in ends])]
        assert max(apart) == 1, "47 inputs a unit: the 43 or 44 of its patch, and some of those beside it"


def test_the_size_of_groups_and_blocks_is_part_of_the_experiment() -> None:
    plain = ["model=sw_mlp", "width=512", "match=none"]
    blocks = [*plain, "model.mask=block"]
    assert solve(config_of(plain)).fingerprint == solve(config_of([*plain, "model.mask_size=4"])).fingerprint
    assert solve(config_of(blocks)).fingerprint != solve(config_of([*blocks, "model.mask_size=8"])).fingerprint
