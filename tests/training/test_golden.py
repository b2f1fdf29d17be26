"""The arithmetic is guarded: 20 losses of every family, fp32, one CPU thread.

A change that is no change of arithmetic leaves them as they are. One that is raises ``NUMBERS_VERSION`` and writes the
file anew:  python tests/training/test_golden.py
"""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from mixersweep.compose import config_of
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.runs import NUMBERS_VERSION, solve
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.rewire import make_rewiring
from mixersweep.training.schedule import rewired_share
from mixersweep.training.steps import Step

GOLDEN = Path(__file__).with_name("golden.json")
EPS = torch.finfo(torch.float32).eps
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
    "hashed": SMALL,
    "block_diagonal": SMALL,
    "btt": [*OWN_SHAPE, "patch_size=8", "width=120", "connections=2640"],
    "btt model.rank=2": [*OWN_SHAPE, "patch_size=8", "width=120", "connections=5280"],
    "butterfly": [*OWN_SHAPE, "patch_size=8", "width=128", "connections=1792"],
    "low_rank": SMALL,
    "shallow_monarch": OWN_SHAPE,
    "shallow_kronecker": OWN_SHAPE,
    **{
        f"sw_mlp model.mask={mask}": SMALL
        for mask in ("bernoulli", "fixed_fan_in", "degree_regular", "n_of_m", "block", "expansion", "local", "diagonal")
    },
    **{f"sw_mlp optim.rewire={kind}": [*SMALL, "optim.rewire_every=4"] for kind in ("set", "rigl", "srigl")},
}


def losses(family: str, *, compiled: bool = False, rounded: torch.Generator | None = None) -> list[float]:
    """Of 20 steps on the same 16 random images; ``rounded``, each weight is off by one rounding before each of them."""
    torch.set_num_threads(1)
    run = solve(config_of([*f"model={family}".split(), *FAMILIES[family]]))
    network = build(run.config, run.architecture)
    forward = torch.compile(network) if compiled else network
    choose_storage(network, "auto", torch.device("cpu"), 16)
    optimizer = make_optimizer(network, run.config.optim)
    rewiring = make_rewiring(run.config, network, optimizer)
    generator = torch.Generator().manual_seed(0)
    size = run.config.image_size
    images = torch.randn(16, 1, size, size, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    found = []
    for index in range(20):
        for parameter in network.parameters() if rounded is not None else ():
            up = torch.randint(2, parameter.shape, generator=rounded, dtype=torch.float32)
            parameter.data.mul_(1 + EPS * (2 * up - 1))
        optimizer.zero_grad()
        share = rewired_share(run.config.optim, index, 20, 1)
        step = Step(1, index, index, images, labels, 16, 0.05, 0, rewired=share)
        with nullcontext() if rewiring is None else rewiring.during(step):
            loss = nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
        if rewiring is None or not rewiring.instead_of_update(step):
            optimizer.step()
        found.append(loss.item())
    return found


def assert_near(found: list[float], golden: list[float], family: str) -> None:
    """As near as another order of adding leaves them, on this processor and the one that wrote them down.

    That rounds other sums up. What it does to the losses of later steps is seen from training that has every weight
    rounded at random before each step, three times: no loss may be off by more than four times as much as one of these
    has been by then, and what it takes itself to sum 10 exponentials, twice, and 16 logarithms.
    """
    plain = losses(family)
    draws = [losses(family, rounded=torch.Generator().manual_seed(seed)) for seed in range(3)]
    furthest = 0.0
    for step, (one, other) in enumerate(zip(found, golden, strict=True)):
        furthest = max(furthest, *(abs(draw[step] - plain[step]) for draw in draws))
        assert abs(one - other) <= 4 * furthest + (2 * 10 + 16) * EPS / 2 * other, step


@pytest.mark.parametrize("family", FAMILIES)
def test_the_losses_are_those_that_were_written_down(family: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["numbers_version"] == NUMBERS_VERSION
    found = losses(family)
    assert_near(found, golden[family], family)
    assert found[-1] < found[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixer", "rp_s_mixer", "sw_mlp"])
def test_compiled_networks_have_the_same_losses(family: str) -> None:
    if not shutil.which("g++"):
        pytest.skip("torch.compile has no compiler here")
    assert_near(losses(family, compiled=True), json.loads(GOLDEN.read_text())[family], family)


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({"numbers_version": NUMBERS_VERSION, **{name: losses(name) for name in FAMILIES}}, indent=1) + "\n"
    )
