"""The arithmetic is guarded: 20 losses of every family, fp32, one CPU thread.

A change that is no change of arithmetic leaves them as they are. One that is raises ``NUMBERS_VERSION`` and writes the
file anew:  python tests/training/test_golden.py
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from mixersweep.compose import config_of
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.runs import NUMBERS_VERSION, solve
from mixersweep.training.optimizer import make_optimizer

GOLDEN = Path(__file__).with_name("golden.json")
SMALL = ["tokens=12", "channels=10", "depth=2", "patch_size=8", "optim.lr=0.05"]
OWN_SHAPE = ["depth=2", "optim.lr=0.05"]
FAMILIES = {
    "s_mixer": SMALL,
    "rp_s_mixer": SMALL,
    "mixer": SMALL,
    "rp_mixer": SMALL,
    "pk": [*SMALL, "model.tied=false"],
    "monarch": SMALL,
    "sw_mlp": SMALL,
    "mlp": SMALL,
    "shallow_monarch": OWN_SHAPE,
    "shallow_kronecker": OWN_SHAPE,
}


def losses(family: str, *, compiled: bool = False) -> list[float]:
    """Of 20 steps on the same 16 random images."""
    torch.set_num_threads(1)
    run = solve(config_of([f"model={family}", *FAMILIES[family]]))
    network = build(run.config, run.architecture)
    forward = torch.compile(network) if compiled else network
    choose_storage(network, "auto", torch.device("cpu"), 16)
    optimizer = make_optimizer(network, run.config.optim)
    generator = torch.Generator().manual_seed(0)
    size = run.config.image_size
    images = torch.randn(16, 1, size, size, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    found = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_losses_are_those_that_were_written_down(family: str) -> None:
    """Other processors add in another order, and 20 steps magnify it: hence not to the last bit."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["numbers_version"] == NUMBERS_VERSION
    found = losses(family)
    assert found[:5] == pytest.approx(golden[family][:5], rel=2e-5, abs=1e-5)
    assert found == pytest.approx(golden[family], rel=2e-2, abs=1e-4)
    assert found[-1] < found[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixer", "rp_s_mixer", "sw_mlp"])
def test_compiled_networks_have_the_same_losses(family: str) -> None:
    if not shutil.which("g++"):
        pytest.skip("torch.compile has no compiler here")
    golden = json.loads(GOLDEN.read_text())[family]
    found = losses(family, compiled=True)
    assert found[:5] == pytest.approx(golden[:5], rel=1e-4, abs=1e-4)
    assert found == pytest.approx(golden, rel=5e-2, abs=1e-3)


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({"numbers_version": NUMBERS_VERSION, **{name: losses(name) for name in FAMILIES}}, indent=1) + "\n"
    )
