"""Golubeva's networks and S-FC as built: against the rule's counts, and against masked dense networks in float64."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.families.layered import LayeredFamily
from mixersweep.layers import Dense, SparseConv, SparseMap, SparseWeights
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.models.parts import BatchNorm
from mixersweep.runs import RunDirectory, solve
from mixersweep.training.optimizer import make_optimizer

CPU = torch.device("cpu")
NETWORKS = {
    "golubeva_mlp": [],
    "golubeva_mlp thin": ["width=80"],
    "golubeva_mlp wide": ["width=640"],
    "golubeva_mlp padded": ["image_size=32", "model.weights_total=5000", "width=7"],
    "golubeva_resnet18": ["image_size=28"],
    "golubeva_resnet18 wide": ["width=24", "image_size=28"],
    "golubeva_resnet18 9": ["width=9"],
    "s_fc": ["model.alpha=1"],
    "s_fc 28": ["model.alpha=2", "image_size=28"],
}


def made(name: str, *more: str) -> tuple:
    run = solve(config_of([f"model={name.split()[0]}", *NETWORKS[name], *more]))
    return run, build(run.config, run.architecture)


def images(run, count: int = 3) -> torch.Tensor:
    size = run.config.image_size
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(8))


def maps_of(network: nn.Module) -> list[SparseMap]:
    return [layer for layer in network.modules() if isinstance(layer, SparseMap)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_built_network_has_what_the_rule_counts(name: str) -> None:
    run, network = made(name)
    a = run.architecture
    assert isinstance(run.config.model, LayeredFamily)
    maps = maps_of(network)
    nonzeros = [int((layer.to_dense() != 0).sum()) for layer in maps]
    assert nonzeros == [layer.connections for layer in maps] == [layer.weights for layer in maps]
    assert sum(nonzeros) == a.total_connections
    assert len(maps) == a.mixing_layers
    assert sum(nonzeros) / len(maps) == a.connections_counted
    assert sum(nonzeros) / sum(layer.to_dense().numel() for layer in maps) == a.density
    assert sum(nonzeros) / sum(layer.out_width for layer in maps) == a.mean_fan_in
    assert sum(p.numel() for p in network.parameters()) == a.parameters
    assert network.head.weights == a.head_parameters
    skips = sum(layer.weights for key, layer in network.named_modules() if key.endswith("skip.0"))
    assert skips == a.skip_parameters == a.skip_connections
    assert a.mixing_parameters == sum(nonzeros) - skips - network.head.weights


@pytest.mark.parametrize("name", ["golubeva_mlp", "golubeva_resnet18", "s_fc", "s_fc 28"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    run, network = made(name)
    assert run.architecture.density == 1
    with FlopCounterMode(display=False) as counter:
        network.eval()(images(run, 1))
    assert counter.get_total_flops() == run.architecture.flops_per_image


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_maps_images_to_logits_whatever_the_batch_and_repeats_itself(name: str) -> None:
    before = torch.get_rng_state()
    run, network = made(name)
    _, again = made(name)
    x = images(run)
    logits = network(x)
    assert logits.shape == (3, 10)
    assert torch.equal(logits, again(x))
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
    network.eval().double()
    x = x.double()
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_are_drawn_from_the_structure_seed_and_weights_from_their_own() -> None:
    def positions(network: nn.Module) -> list[torch.Tensor]:
        return [layer.positions for layer in maps_of(network) if isinstance(layer, SparseConv)]

    _, one = made("golubeva_resnet18 wide")
    _, weights = made("golubeva_resnet18 wide", "seeds.initialization=5")
    _, structure = made("golubeva_resnet18 wide", "seeds.structure=5")
    assert all(torch.equal(a, b) for a, b in zip(positions(one), positions(weights), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(positions(one), positions(structure), strict=True))
    assert not torch.equal(one.head.weight, weights.head.weight)
    assert not any("positions" in key for key in one.state_dict())


def test_small_layers_stay_dense_and_the_others_share_equally() -> None:
    _, network = made("golubeva_resnet18 wide")
    kept = [(layer.weights, layer.to_dense().numel()) for layer in maps_of(network)]
    level = max(kept for kept, size in kept if kept < size)
    assert all(level - 1 <= kept <= level if kept < size else kept <= level for kept, size in kept)
    assert kept[0][0] == kept[0][1] == 24 * 9
    assert isinstance(network.head, Dense)
    _, mlp = made("golubeva_mlp wide")
    assert [type(layer) for layer in maps_of(mlp)] == [SparseWeights, SparseWeights]


def masked_kernels(network: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's dense matrix with junk where its mask is zero, and the mask."""
    found = {}
    for index, (name, layer) in enumerate(network.named_modules()):
        if isinstance(layer, SparseMap):
            dense = layer.to_dense().detach()
            mask = (dense != 0).double()
            junk = torch.randn(dense.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
            found[name] = (torch.where(mask > 0, dense, junk).requires_grad_(), mask)
    return found


def assert_same_gradients(network: nn.Module, dense: dict, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    labels = torch.tensor([3, 1, 4])
    functional.cross_entropy(ours, labels).backward()
    functional.cross_entropy(theirs, labels).backward()
    for name, (kernel, mask) in dense.items():
        expected = kernel.grad[mask > 0]
        assert not kernel.grad[mask == 0].any()
        torch.testing.assert_close(network.get_submodule(name).weight.grad.flatten(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["golubeva_mlp thin", "golubeva_mlp wide"])
def test_golubevas_mlp_is_a_masked_mlp(name: str) -> None:
    run, network = made(name)
    network = network.double()
    dense = masked_kernels(network)
    x = images(run).double()
    hidden, head = (kernel * mask for kernel, mask in dense.values())
    theirs = (
        torch.relu(x.flatten(1) @ hidden.t() + network.hidden.bias.detach()) @ head.t() + network.head.bias.detach()
    )
    assert_same_gradients(network, dense, network(x), theirs)


def test_golubevas_resnet_is_a_masked_resnet18() -> None:
    run, network = made("golubeva_resnet18 wide")
    network = network.double()
    dense = masked_kernels(network)
    x = images(run).double()

    def convolved(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        kernel, mask = dense[f"{name}.0"]
        size = 1 if name.endswith("skip") else 3
        y = functional.conv2d(x, (kernel * mask).view(-1, x.shape[1], size, size), stride=stride, padding=size // 2)
        return functional.batch_norm(y, None, None, training=True)  # fresh norms scale by 1 and shift by 0

    y = torch.relu(convolved("stem", x))
    for block, stride in enumerate([1, 1, 2, 1, 2, 1, 2, 1]):
        first = torch.relu(convolved(f"blocks.{block}.first", y, stride))
        skip = convolved(f"blocks.{block}.skip", y, stride) if stride == 2 else y
        y = torch.relu(skip + convolved(f"blocks.{block}.second", first))
    assert y.shape == (3, 8 * 24, 4, 4)
    kernel, mask = dense["head"]
    theirs = y.mean((2, 3)) @ (kernel * mask).t() + network.head.bias.detach()
    assert_same_gradients(network, dense, network(x), theirs)


def test_s_fc_is_three_matrices_with_norms_and_relus_between() -> None:
    run, network = made("s_fc")
    network = network.double()
    x = images(run).double()
    first, second, head = (layer.weight for layer in maps_of(network))
    assert [tuple(w.shape) for w in (first, second, head)] == [(256, 1024), (24, 256), (10, 24)]
    y = x.flatten(1)
    for weight in (first, second):
        y = torch.relu(functional.batch_norm(y @ weight.t(), None, None, training=True))
    torch.testing.assert_close(network(x), y @ head.t() + network.head.bias, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "beta_lasso"])
def test_masked_weights_stay_exactly_zero_in_training(optimizer: str) -> None:
    run, network = made("golubeva_resnet18 wide", f"optim={optimizer}", "optim.weight_decay=0.1", "optim.lr=0.01")
    maps = maps_of(network)
    masks = [layer.to_dense() != 0 for layer in maps]
    updates = make_optimizer(network, run.config.optim)
    for step in range(3):
        updates.zero_grad()
        functional.cross_entropy(network(images(run) + step), torch.tensor([0, 1, 2])).backward()
        updates.step()
    for layer, mask in zip(maps, masks, strict=True):
        assert not (layer.to_dense() != 0)[~mask].any()


def test_weight_decay_spares_batch_norms() -> None:
    run, network = made("s_fc", "optim.weight_decay=0.25")
    decayed, _ = make_optimizer(network, run.config.optim).param_groups
    assert {id(p) for p in decayed["params"]} == {id(layer.weight) for layer in maps_of(network)}


def test_a_batch_of_one_image_is_normalised_by_the_running_statistics() -> None:
    norm = BatchNorm(2)
    norm(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    x = torch.tensor([[1.0, 2.0]])
    before = norm.running_mean.clone()
    trained = norm(x)
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(trained, norm.eval()(x))
    places = torch.randn(1, 2, 30, 30, generator=torch.Generator().manual_seed(1)) * 3
    assert float(BatchNorm(2)(places).detach().std()) == pytest.approx(1, abs=0.01)


def test_storage_is_chosen_layer_by_layer_and_chosen_again_alike() -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("torch has no CSR kernel here")
    _, thin = made("golubeva_mlp thin")  # a full head is no sparse layer
    assert choose_storage(thin, "auto", CPU, 128) == "sparse"
    run, mixed = made("golubeva_mlp wide", "width=250")  # 1,985 of 196,000 and of 2,500
    assert choose_storage(mixed, "auto", CPU, 128) == "mixed"
    assert [layer.storage for layer in maps_of(mixed)] == ["sparse", "dense"]
    before = mixed(images(run))
    assert choose_storage(mixed, "mixed", CPU, 128) == "mixed"
    assert torch.equal(mixed(images(run)), before)
    assert choose_storage(mixed, "dense", CPU, 128) == "dense"
    torch.testing.assert_close(mixed(images(run)), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_run_reads_back_and_solves_to_itself(tmp_path: Path, name: str) -> None:
    run, _ = made(name)
    assert RunDirectory.open(RunDirectory.create(run, tmp_path).path).run == run
    assert solve(run.config).fingerprint == run.fingerprint


@pytest.mark.parametrize(
    ("family", "override"),
    list(
        itertools.product(
            ["golubeva_mlp", "golubeva_resnet18", "s_fc"],
            ["tokens=8", "channels=8", "density=0.5", "connections=2**15", "expansion=2", "depth=3"],
        )
    ),
)
def test_settings_of_other_families_are_refused_by_name(family: str, override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(UserError, match=f"^{name}=.*{family}"):
        solve(config_of([f"model={family}", override]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=golubeva_mlp", "width=4"], "width=4: .*the narrowest that holds them: 5"),
        (["model=golubeva_mlp", "model.weights_total=0"], "model.weights_total=0: expects a whole number, at least 1"),
        (
            ["model=golubeva_resnet18", "model.base_width=7"],
            "model.base_width=7: expects .*, at least 8 and at most 64",
        ),
        (["model=golubeva_resnet18", "model.base_width=12", "width=11"], "width=11: .*: 12"),
        (["model=s_fc", "width=100"], "width=100: s_fc with model.alpha=150 has the one width 38400"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        solve(config_of(overrides))
