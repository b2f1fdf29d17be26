"""Benchmarks of whole training steps: families against each other, and very wide SW-MLPs.

The families have the sizes of Table S.3 of Hayase & Karakida 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.bench.harness import Case
from mixersweep.compose import config_of
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.runs import Run, solve
from mixersweep.training.optimizer import make_optimizer

BATCH = 128
TABLE_S3 = ("tokens=64", "channels=48", "depth=3", "expansion=2")


@dataclass(frozen=True)
class Step:
    """A training step: forward, loss, backward and update."""

    overrides: tuple[str, ...]
    compiled: bool = False

    @property
    def run(self) -> Run:
        """The run whose step it is."""
        return solve(config_of(list(self.overrides)))

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        run = self.run
        network = build(run.config, run.architecture).to(device)
        choose_storage(network, "auto", device, BATCH)
        forward = torch.compile(network) if self.compiled else network
        optimizer = make_optimizer(network, run.config.optim)
        size = run.config.image_size
        images = torch.randn(BATCH, run.config.data.image_channels, size, size, device=device)
        labels = torch.randint(run.config.data.classes, (BATCH,), device=device)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step


def step_cases(everything: bool) -> Iterator[Case]:
    """Yield all comparisons of steps.

    ``everything`` adds the widest network and, on a GPU, where compiling takes minutes, compiled ones.
    """
    for compiled in (False, True) if everything or not torch.cuda.is_available() else (False,):
        mixer = Step(("model=mixer", *TABLE_S3), compiled)
        for name, step in [
            ("sw_mlp_vs_mixer", Step(("model=sw_mlp", "model.hidden=true", *TABLE_S3), compiled)),
            ("rp_mixer_vs_mixer", Step(("model=rp_mixer", *TABLE_S3), compiled)),
        ]:
            yield Case(name, _sizes(step.run), step, mixer, "compiled" if compiled else "eager")
    widest = Step(("model=s_mixer", "connections=2**18", "depth=3"))
    for width in [65536, *([262144] if everything else [])]:
        step = Step(("model=sw_mlp", "connections=2**18", f"width={width}", "depth=3"))
        yield Case("wide_sw_mlp_vs_widest_mixer", _sizes(step.run), step, widest, memory=True)


def _sizes(run: Run) -> dict[str, object]:
    a = run.architecture
    sizes = {"tokens": a.tokens, "channels": a.channels, "batch_size": BATCH}
    return {"model": run.config.model.name, "width": a.width, "connections": a.connections, **sizes}
