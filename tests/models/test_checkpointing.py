"""Gradient checkpointing: the same numbers to the last bit, in less memory."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.models import build, checkpointed, stochastic_depth
from mixersweep.runs import solve

FAMILIES = {
    "s_mixer": ["tokens=6", "channels=5", "patch_size=8", "depth=5"],
    "mixer": ["tokens=6", "channels=5", "patch_size=8", "depth=5"],
    "rp_s_mixer": ["tokens=6", "channels=5", "patch_size=8", "depth=5"],
    "pk": ["tokens=6", "channels=5", "patch_size=8", "depth=5", "model.tied=false"],
    "monarch": ["tokens=6", "channels=5", "patch_size=8", "depth=5"],
    "sw_mlp": ["width=30", "connections=200", "patch_size=8", "depth=3"],
    "hashed": ["width=30", "connections=200", "patch_size=8", "depth=3"],
    "block_diagonal": ["width=30", "connections=150", "patch_size=8", "depth=3"],
    "btt": ["width=30", "connections=330", "patch_size=8", "depth=3"],
    "butterfly": ["width=30", "connections=300", "patch_size=8", "depth=3"],
    "low_rank": ["width=30", "connections=150", "patch_size=8", "depth=3"],
    "mlp": ["connections=900", "patch_size=8", "depth=3"],
    "golubeva_resnet18": ["stochastic_depth=0"],
}


def made(family: str) -> nn.Module:
    run = solve(config_of([f"model={family}", "stochastic_depth=0.3", *FAMILIES[family]]))
    return build(run.config, run.architecture)


def after_steps(network: nn.Module) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logits and gradients of three steps, and what the network is then."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    network.train()
    found = []
    for step in range(3):
        images = torch.randn(6, 1, 32, 32, generator=generator)
        stochastic_depth.draw(network, step, 6, torch.device("cpu"))
        optimizer.zero_grad()
        logits = network(images)
        nn.functional.cross_entropy(logits, torch.arange(6)).backward()  # type: ignore[no-untyped-call]
        found += [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        optimizer.step()
    return found, network.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("every", [1, 2, 100])
def test_forward_gradients_and_statistics_are_the_same_to_the_last_bit(family: str, every: int) -> None:
    plain, state = after_steps(made(family))
    found, after = after_steps(checkpointed(made(family), every))
    assert len(found) == len(plain)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())  # BatchNorm's too


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at what it traces
@pytest.mark.parametrize("family", ["s_mixer", "sw_mlp", "golubeva_resnet18"])
def test_compiled_the_numbers_are_the_same_too(family: str) -> None:
    torch._dynamo.reset()
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, network = made(family).train(), checkpointed(made(family)).train()
    for one in (plain, network):
        stochastic_depth.draw(one, 0, 4, torch.device("cpu"))
    plain(images).sum().backward()
    torch.compile(network, backend="aot_eager")(images).sum().backward()
    for one, other in zip(plain.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value)
    torch._dynamo.reset()


def test_evaluation_computes_nothing_again() -> None:
    network = made("s_mixer").eval()
    images = torch.randn(2, 1, 32, 32)
    expected = network(images)
    calls = []
    checkpointed(network).get_submodule("blocks.0").register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert torch.equal(network(images), expected)
    assert len(calls) == 1
    network.train()
    stochastic_depth.draw(network, 0, 2, torch.device("cpu"))
    network(images).sum().backward()
    assert len(calls) >= 2  # the forward pass, and again in the backward one


PEAK = r"""
import pathlib, psutil, re, sys, torch
from mixersweep.compose import config_of
from mixersweep.models import build, checkpointed
from mixersweep.runs import solve
torch.set_num_threads(1)
run = solve(config_of(sys.argv[2:]))
network = build(run.config, run.architecture)
if sys.argv[1] == "true":
    checkpointed(network)
images = torch.randn(192, 1, 32, 32)
network(images[:1]).sum().backward()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = psutil.Process().memory_info().rss
network(images).sum().backward()
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 - before)
"""


@pytest.mark.parametrize(
    "overrides",
    [["model=s_mixer", "tokens=64", "channels=64"], ["model=sw_mlp", "width=4096", "connections=16384"]],
    ids=["deep", "wide"],
)
def test_memory_is_lower_in_a_process_of_its_own(overrides: list[str]) -> None:
    peak = {}
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # freed tensors are given back: no holes are counted
    for on in ("false", "true"):
        command = [sys.executable, "-c", PEAK, on, *overrides, "depth=24"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peak[on] = float(done.stdout)
    assert peak["true"] < 0.5 * peak["false"], peak


@pytest.mark.parametrize("family", ["s_fc", "golubeva_mlp", "shallow_kronecker"])
def test_networks_without_blocks_refuse_it(family: str) -> None:
    assert config_of(["gradient_checkpointing=true"]).gradient_checkpointing
    with pytest.raises(UserError, match=f"^gradient_checkpointing=true: {family} has no blocks to compute again; set"):
        config_of([f"model={family}", "gradient_checkpointing=true"])
