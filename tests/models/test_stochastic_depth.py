"""Stochastic depth: which branches have it, what it multiplies by, and that only the seed decides."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers.drop import calculate_drop_path_rates
from torch import Tensor, nn

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.models import build, stochastic_depth
from mixersweep.models.stochastic_depth import DropPath
from mixersweep.runs import solve

CPU = torch.device("cpu")
SMALL = ["tokens=6", "channels=5", "patch_size=8", "depth=4"]
FAMILIES = {
    "s_mixer": SMALL,
    "mixer": SMALL,
    "rp_mixer": SMALL,
    "pk": [*SMALL, "model.tied=false"],
    "monarch": SMALL,
    "sw_mlp": ["width=30", "connections=200", "patch_size=8", "depth=4"],
    "hashed": ["width=30", "connections=200", "patch_size=8", "depth=4"],
    "block_diagonal": ["width=30", "connections=150", "patch_size=8", "depth=4"],
    "btt": ["width=30", "connections=330", "patch_size=8", "depth=4"],
    "butterfly": ["width=30", "connections=300", "patch_size=8", "depth=4"],
    "low_rank": ["width=30", "connections=150", "patch_size=8", "depth=4"],
    "mlp": ["connections=900", "patch_size=8", "depth=4"],
    "golubeva_resnet18": [],
}
BRANCHES_OF_A_BLOCK = {"monarch": 1, "golubeva_resnet18": 1}


def made(family: str, *overrides: str) -> nn.Module:
    run = solve(config_of([f"model={family}", *FAMILIES[family], *overrides]))
    network = build(run.config, run.architecture)
    return network.train()


def paths(network: nn.Module) -> list[DropPath]:
    return [module for module in network.modules() if isinstance(module, DropPath)]


def images(batch: int) -> Tensor:
    return torch.randn(batch, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_rise_linearly_over_blocks_as_timms(family: str) -> None:
    network = made(family, "stochastic_depth=0.3")
    depth, branches = (8 if family == "golubeva_resnet18" else 4), BRANCHES_OF_A_BLOCK.get(family, 2)
    rates = [rate for rate in calculate_drop_path_rates(0.3, depth) for _ in range(branches)]
    assert rates[:branches] == [0.0] * branches  # the first block has none
    assert [path.rate for path in paths(network)] == pytest.approx(rates[branches:])
    for path in paths(network):
        assert path.batch_dim == (0 if family == "golubeva_resnet18" else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_rate_zero_builds_the_same_network_as_before_the_setting(family: str) -> None:
    network = made(family)
    assert not paths(network)
    stochastic_depth.draw(network, 0, 3, CPU)  # nothing to draw
    assert list(network.state_dict()) == list(made(family, "stochastic_depth=0.3").state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_is_that_of_the_network_without_it(family: str) -> None:
    x = images(3)
    assert torch.equal(made(family, "stochastic_depth=0.5").eval()(x), made(family).eval()(x))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "golubeva_resnet18"])
def test_in_training_each_image_is_computed_by_the_branches_that_it_keeps(family: str) -> None:
    """Against the network without it whose branches are multiplied by hand, image by image."""
    dropping, plain = made(family, "stochastic_depth=0.6"), made(family)
    plain.load_state_dict(dropping.state_dict())
    x, batch = images(6), 6
    stochastic_depth.draw(dropping, 11, batch, CPU)
    found = dropping(x)
    kept = torch.stack([path.kept for path in paths(dropping) if path.kept is not None])
    assert 0 < (kept == 0).sum() < kept.numel()
    for path, row in zip(paths(dropping), kept, strict=True):
        assert set(row.tolist()) <= {0.0, (1 / (1 - torch.tensor(path.rate))).item()}
    ends = {name.rpartition(".")[0] for name, module in dropping.named_modules() if isinstance(module, DropPath)}
    factors = iter(kept)
    for name, module in plain.named_modules():
        if name in ends:
            row = next(factors)

            def scaled(_: nn.Module, __: object, y: Tensor, row: Tensor = row) -> Tensor:
                return y * (row if y.dim() == 2 else row[:, None])  # (m, B) or (rows, B, columns)

            module.register_forward_hook(scaled)
    assert torch.equal(found, plain(x))


def test_each_branch_drops_at_its_rate_and_keeps_the_mean() -> None:
    network = made("s_mixer", "stochastic_depth=0.4")
    stochastic_depth.draw(network, 3, 20_000, CPU)
    for path in paths(network):
        assert path.kept is not None
        assert (path.kept == 0).float().mean().item() == pytest.approx(path.rate, abs=0.012)
        assert path.kept.mean().item() == pytest.approx(1, abs=0.02)
    first, second = paths(network)[-2:]  # of one block, of one rate, drawn apart
    assert first.kept is not None
    assert second.kept is not None
    both = ((first.kept == 0) & (second.kept == 0)).float().mean().item()
    assert both == pytest.approx(0.16, abs=0.012)


def test_only_the_seed_decides_and_no_global_state_is_read_or_moved() -> None:
    network, x = made("s_mixer", "stochastic_depth=0.5"), images(8)

    def outcome(seed: int) -> Tensor:
        stochastic_depth.draw(network, seed, 8, CPU)
        logits: Tensor = network(x)
        return logits

    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    first = outcome(2**62)
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.rand(3)
    assert torch.equal(outcome(2**62), first)
    assert not torch.equal(outcome(2**62 + 1), first)


def test_a_part_of_a_batch_drops_what_the_whole_does() -> None:
    network, x = made("sw_mlp", "stochastic_depth=0.5"), images(7)
    stochastic_depth.draw(network, 5, 7, CPU)
    whole = network(x)
    for part in (slice(0, 4), slice(4, 7)):
        stochastic_depth.draw(network, 5, 7, CPU, part)
        torch.testing.assert_close(network(x[part]), whole[part])


def test_a_forward_pass_in_training_without_a_draw_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="draw comes before"):
        made("s_mixer", "stochastic_depth=0.5")(images(1))


def test_halves_stay_halves() -> None:
    network = made("mlp", "stochastic_depth=0.5").to(torch.bfloat16)
    stochastic_depth.draw(network, 0, 2, CPU)
    assert network(images(2).to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=s_fc"], "stochastic_depth=0.1: s_fc has no skips; set it to 0"),
        (["model=shallow_monarch"], "stochastic_depth=0.1: shallow_monarch has no skips; set it to 0"),
        (["model=golubeva_mlp"], "stochastic_depth=0.1: golubeva_mlp has no skips; set it to 0"),
        (["depth=1"], "stochastic_depth=0.1: depth=1 is the first block, where it is 0; set it to 0"),
    ],
)
def test_networks_without_skips_refuse_it(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config_of([*overrides, "stochastic_depth=0.1"])
    assert str(refused.value) == said


@pytest.mark.slow
def test_compiled_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = made("s_mixer", "stochastic_depth=0.5"), images(8)
    expected = []
    for seed in range(4):
        stochastic_depth.draw(network, seed, 8, CPU)
        expected.append(network(x))
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, backend=backend)
    for seed in range(4):
        stochastic_depth.draw(network, seed, 8, CPU)
        torch.testing.assert_close(compiled(x), expected[seed])
    assert len(graphs) == 1
    torch._dynamo.reset()
