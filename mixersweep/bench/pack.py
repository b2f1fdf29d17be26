"""Benchmarks of packs: a training step and a short sweep against one run after another, and against their bounds.

A step is what the training loop does: gather, crop and flip the images, forward, backward, update, sums of loss and
accuracy. The bounds of a pack of R runs are the same multiply-adds in R stacked dense MLPs of as many connections, and
this machine's rates of multiply-adds (one large product) and of bytes (a copy):

    multiply-adds of a step   3 R B F               B images, F multiply-adds of an image's forward pass
    bytes of a step           R (2 A + 28 P)        A bytes of kept activations, each written and read once; P
                                                    parameters of 4 bytes, each read and written with its gradient and
                                                    momentum, and read once more for the forward and backward passes

A sweep is the whole command: as one pack, as one run after another, as one process per run, and on a GPU with NVIDIA's
MPS also as processes that share it through MPS.
"""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mixersweep.bench.harness import Case, captured
from mixersweep.bench.layers import GEMM_SIZE, gemm
from mixersweep.compose import config_of
from mixersweep.data.splits import open_splits, share_splits
from mixersweep.runs import Run, fingerprint, solve
from mixersweep.sweeps.launchers.mps import CONTROL
from mixersweep.sweeps.memory import activation_bytes
from mixersweep.training.engine import Eager, Engine
from mixersweep.training.packed import Packed
from mixersweep.training.parallel import World

MODELS = ("s_mixer", "rp_s_mixer", "sw_mlp")
COPIED = 2**28
"""The bytes that ``copy`` reads and writes."""


@dataclass(frozen=True)
class PackStep:
    """A training step of ``runs`` runs of a family's default size by the packed engine."""

    model: str
    runs: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device, or reuse the pack of the last call if it is the same."""
        return _pack_steps(self, device)


@dataclass(frozen=True)
class EagerStep:
    """A training step of one such run by the eager engine."""

    model: str

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        run = run_of(self.model)
        return _steps(Eager(run, device, World(), "auto", open_splits(run.config, device), None))


@dataclass(frozen=True)
class StackedDense:
    """The forward and both backward products of the mixing layers of ``runs`` dense MLPs, as batched products."""

    runs: int
    width: int
    layers: int
    batch: int

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all products."""
        return 3 * self.runs * self.layers * self.batch * self.width**2

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device, on a GPU as one CUDA graph, like a pack's step."""
        stacks = self.runs, self.layers
        weights = torch.randn(*stacks, self.width, self.width, device=device).unbind(1)
        x, g = (torch.randn(self.runs, self.batch, self.width, device=device) for _ in range(2))

        def products() -> list[Tensor]:
            made = [torch.bmm(x, weight) for weight in weights]
            made += [torch.bmm(g, weight.mT) for weight in weights]
            return [*made, *(torch.bmm(x.mT, g) for _ in weights)]

        return captured(products, device)


def copy(device: torch.device) -> Callable[[], object]:
    """Prepare one copy of ``COPIED`` bytes, whose rate stands for the memory bandwidth of this machine."""
    one = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    return lambda: other.copy_(one)


@dataclass(frozen=True)
class Sweep:
    """The command that trains ``runs`` seeds of the default S-Mixer; ``how`` are settings of engine and launcher."""

    runs: int
    epochs: int
    how: tuple[str, ...]

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Return a function that runs the command in a new temporary folder."""
        what = (f"seed=range({self.runs})", f"epochs={self.epochs}", "tracking=none", f"device={device.type}")
        command = [sys.executable, "-m", "mixersweep", "train", "-m", "model=s_mixer", *what, *self.how]

        def sweep() -> None:
            with TemporaryDirectory() as folder:
                done = subprocess.run([*command, f"runs_dir={folder}"], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)

        return sweep


def pack_cases(everything: bool) -> Iterator[Case]:
    """Yield all comparisons of packs; ``everything`` takes the pack sizes of a GPU on a CPU, too."""
    large = everything or torch.cuda.is_available()
    for model, runs in itertools.product(MODELS, (1, 8, 32, 64) if large else (2,)):
        yield from step_cases(model, runs)
    yield from sweep_cases(*((16, 2) if large else (2, 1)))


def step_cases(model: str, runs: int) -> Iterator[Case]:
    """Yield a step of a pack against one run after another, and against its bounds."""
    run = run_of(model)
    config, a = run.config, run.architecture
    sizes = {"model": model, "width": a.width, "connections": a.connections}
    sizes |= {"tokens": a.tokens, "channels": a.channels, "batch_size": config.batch_size, "pack_size": runs}
    step = PackStep(model, runs)
    dense = StackedDense(runs, math.isqrt(int(a.connections)), a.mixing_layers, config.batch_size)
    multiply_adds = 3 * runs * config.batch_size * a.flops_per_image // 2
    moved = runs * (2 * activation_bytes(config, a) + 28 * a.parameters)
    extra = {"multiply_adds": multiply_adds, "bytes": moved}
    yield Case("pack_vs_one_after_another", sizes, step, EagerStep(model), "packed", scale=runs)
    scale = multiply_adds / dense.multiply_adds
    yield Case("pack_vs_stacked_dense", sizes, step, dense, "packed", scale=scale)
    yield Case("pack_vs_multiply_adds", sizes, step, gemm, "packed", scale=multiply_adds / GEMM_SIZE**3, extra=extra)
    yield Case("pack_vs_bytes", sizes, step, copy, "packed", scale=moved / (2 * COPIED), extra=extra)


def sweep_cases(runs: int, epochs: int) -> Iterator[Case]:
    """Yield a sweep as one pack against the same sweep launched in other ways."""
    run = run_of("s_mixer")
    sizes = {"model": "s_mixer", "width": run.architecture.width, "connections": run.architecture.connections}
    sizes |= {"batch_size": run.config.batch_size, "runs": runs, "epochs": epochs}
    pack = Sweep(runs, epochs, ("engine=packed", "hydra.launcher.jobs=1"))
    apart = ("engine=eager", "hydra.launcher.pack=1")
    side_by_side = (*apart, f"hydra.launcher.jobs={runs}", f"hydra.launcher.runs_per_gpu={runs}")
    ways = {
        "one_after_another": (*apart, "hydra.launcher.jobs=1"),
        "processes": (*side_by_side, "hydra.launcher.mps=false"),
    }
    if torch.cuda.is_available() and shutil.which(CONTROL):
        ways["processes_with_mps"] = side_by_side
    for name, how in ways.items():
        yield Case(f"sweep_as_pack_vs_{name}", sizes, pack, Sweep(runs, epochs, how), "command", once=True)


def run_of(model: str) -> Run:
    """Return the default run of a family."""
    return solve(config_of([f"model={model}"]))


@lru_cache(maxsize=1)
def _pack_steps(step: PackStep, device: torch.device) -> Callable[[], object]:
    """Prepare a pack once for all its comparisons, as preparing a large one takes longer than timing it."""
    first = run_of(step.model)
    runs = [_seeded(first, seed) for seed in range(step.runs)]
    splits = share_splits([run.config for run in runs], device)
    return _steps(Packed(runs, device, splits, "auto", [None] * len(runs)))


def _seeded(run: Run, seed: int) -> Run:
    config = replace(run.config, seed=seed)
    return Run(config, run.architecture, run.origin, fingerprint(config, run.architecture))


def _steps(engine: Engine) -> Callable[[], object]:
    """Return a function that takes the next training step of an engine, epoch after epoch."""
    steps = itertools.chain.from_iterable(engine.epoch(epoch, 0, [None] * engine.count) for epoch in itertools.count(1))
    return lambda: next(steps)
