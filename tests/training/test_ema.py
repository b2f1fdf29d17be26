"""The average of the weights against its definition, in the networks that have something special about them."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from mixersweep.compose import config_of
from mixersweep.models import build
from mixersweep.runs import solve
from mixersweep.training.ema import Average
from mixersweep.training.optimizer import make_optimizer
from tests.gpu import no_waiting

FAMILIES = {
    "pk": ["model=pk", "tokens=6", "channels=5", "depth=2", "patch_size=16", "model.random_layers=both"],
    "sw_mlp": ["model=sw_mlp", "width=40", "connections=200", "depth=1", "patch_size=16"],
    "s_fc": ["model=s_fc", "model.alpha=1"],
    "golubeva_resnet18": ["model=golubeva_resnet18"],
}


def made(family: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    run = solve(config_of(FAMILIES[family]))
    network = build(run.config, run.architecture)
    return network, make_optimizer(network, run.config.optim)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    labels = torch.randint(10, (4,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def floats(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.double() for name, value in module.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_average_is_that_of_its_definition(family: str) -> None:
    network, optimizer = made(family)
    average = Average(network, decay=0.6)
    expected = {name: value.clone() for name, value in floats(network).items()}
    for step in range(12):
        train(network, optimizer, step)
        average.update(network, step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in floats(network).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    found = floats(average.module)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    counts = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    assert bool(counts) == (family in ("s_fc", "golubeva_resnet18"))
    assert all(average.module.state_dict()[name] == 12 for name in counts)


def test_the_decay_rises_to_the_one_that_was_asked_for() -> None:
    average = Average(nn.Linear(2, 2), decay=0.999)
    decays = [average.get_decay(step) for step in (0, 1, 90, 8981, 10**6)]
    assert decays == [1 / 10, 2 / 11, 91 / 100, 8982 / 8991, 0.999]
    assert average.get_decay() == 0.999


def test_an_old_average_moves_by_a_thousandth() -> None:
    network = nn.Linear(3, 3)
    average = Average(network, decay=0.999)
    before = average.module.weight.clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    average.update(network, 10**6)
    torch.testing.assert_close(average.module.weight - before, torch.full((3, 3), 1e-3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_structure_is_shared_and_weights_are_not(family: str) -> None:
    network, optimizer = made(family)
    average = Average(network, decay=0.9)
    stored = set(network.state_dict())
    theirs, ours = dict(network.named_buffers()), dict(average.module.named_buffers())
    assert set(theirs) == set(ours)
    for name, buffer in theirs.items():
        assert (ours[name] is buffer) == (name not in stored), name
    assert family == "s_fc" or any(name not in stored for name in theirs)
    for one, other in zip(network.parameters(), average.module.parameters(), strict=True):
        assert one.data_ptr() != other.data_ptr()
        assert not other.requires_grad
    assert not any(module.training for module in average.module.modules())
    network.train()
    train(network, optimizer, 0)
    assert not average.module.training


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_and_goes_on_to_the_same_numbers(family: str) -> None:
    network, optimizer = made(family)
    average = Average(network, decay=0.9)
    for step in range(3):
        train(network, optimizer, step)
        average.update(network, step)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    fresh, _ = made(family)
    resumed = Average(fresh, decay=0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(network, optimizer, 3)
    twin = copy.deepcopy(network)
    average.update(network, 3)
    resumed.update(twin, 3)
    images = torch.randn(4, 1, 32, 32)
    assert torch.equal(average.module(images), resumed.module(images))
    assert all(
        torch.equal(one, other)
        for one, other in zip(average.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.gpu
def test_an_update_does_not_wait_for_the_device() -> None:
    network, _ = made("s_fc")
    network.cuda()
    average = Average(network, decay=0.9)
    with no_waiting():
        average.update(network, 0)
    assert all(value.is_cuda for value in average.state_dict().values())
