"""Probes: looking inside a network while it trains (``probes=[spectrum, ...]``), into ``probes.jsonl`` and W&B.

A probe is a function of the weights and of a few training images that the seeds choose: it draws no random number,
changes no state, and gives the same values however often a run was stopped. It sees the network itself, not its
averaged weights, and runs in the first process only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.data.batches import Batches
from mixersweep.layers import PermutedKronecker
from mixersweep.layers.effective import extremes, largest
from mixersweep.layers.sparsity import sparsity_indices
from mixersweep.models.branches import Features, mixing_maps
from mixersweep.runs import RunDirectory
from mixersweep.seeds import derive, seed_of
from mixersweep.training.learner import Learner
from mixersweep.training.precision import autocast

IMAGES = 256
"""The most images that a probe sees; it never takes more than a training step does, so that they fit in memory."""

CHUNK = 1 << 14
"""The number of features converted to float64 at once."""

Values = Iterator[tuple[str, float | None]]


def spectrum(learner: Learner, _images: Tensor, _labels: Tensor) -> Values:
    """The largest singular value of each effective matrix; for Mixers, whose factors are small, also the smallest."""
    for name, layer in mixing_maps(learner.network).items():
        yield f"spectrum_largest/{name}", largest(layer)
        if isinstance(layer, PermutedKronecker):
            yield f"spectrum_smallest/{name}", extremes(layer).smallest


def sparsity(learner: Learner, _images: Tensor, _labels: Tensor) -> Values:
    """Hoyer's sparsity index and |w|₁/(√n |w|₂) of the n weights of each mixing map."""
    for name, layer in mixing_maps(learner.network).items():
        weight = layer.weight.detach()
        l1, l2 = weight.abs().sum(dtype=torch.float64), weight.square().sum(dtype=torch.float64).sqrt()
        hoyer, ratio = sparsity_indices(weight.numel(), float(l1), float(l2))
        yield f"sparsity_hoyer/{name}", hoyer
        yield f"sparsity_l1_over_l2/{name}", ratio


def gradient_norm(learner: Learner, images: Tensor, labels: Tensor) -> Values:
    """The norm of the gradient of the eval-mode cross-entropy: by all parameters, and by each mixing map's weights."""
    parameters = list(learner.network.parameters())
    with autocast(learner.config.precision, learner.device):
        loss = F.cross_entropy(learner.network(images), labels)
    scale = learner.scaler.get_scale()  # of fp16, whose small gradients would be zero
    gradients = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
    norms = [
        0.0 if gradient is None else float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) / scale
        for gradient in gradients
    ]
    yield "gradient_norm/all", math.hypot(*norms)
    of = {id(parameter): norm for parameter, norm in zip(parameters, norms, strict=True)}
    for name, layer in mixing_maps(learner.network).items():
        yield f"gradient_norm/{name}", of[id(layer.weight)]


def activation_rank(learner: Learner, images: Tensor, _labels: Tensor) -> Values:
    """The effective rank (Roy & Vetterli 2007) of each residual branch's output: exp of the singular values' entropy.

    The features are centred over the images, so it is at most the number of images minus one.
    """
    with Features(learner.network) as features, autocast(learner.config.precision, learner.device):
        found = features.of(images)
    for name, x in zip(features.layers, found, strict=True):
        gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
        for some in x.split(CHUNK, dim=1):
            centred = some.double() - some.double().mean(0)
            gram += centred @ centred.t()
        values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
        shares = values / values.sum()
        yield f"activation_rank/{name}", float(torch.special.entr(shares).sum().exp())


PROBES: dict[str, Callable[[Learner, Tensor, Tensor], Values]] = {
    "spectrum": spectrum,
    "sparsity": sparsity,
    "gradient_norm": gradient_norm,
    "activation_rank": activation_rank,
}


class Probes:
    """The probes of one run, in the first process; without any in ``probes`` it does nothing."""

    def __init__(self, directory: RunDirectory, images: Batches, epochs_done: int, world_size: int = 1) -> None:
        self.directory, self.config = directory, directory.run.config
        self.names = list(dict.fromkeys(self.config.probes or []))
        self._images = images
        self._chosen: tuple[Tensor, Tensor] | None = None
        self._at_once = math.ceil(self.config.batch_size / world_size / self.config.accumulation)
        directory.restore_probes(epochs_done)

    def after(self, epoch: int, of: Callable[[], Learner]) -> None:
        """Run the probes after every ``probe_every``-th epoch and the last; ``of`` returns the learner to probe."""
        if not self.names or (epoch % self.config.probe_every and epoch != self.config.epochs):
            return
        began = time.monotonic()
        if self._chosen is None:
            self._chosen = self._choose()
        row: dict[str, Any] = {"epoch": epoch}
        learner = of()
        learner.network.eval()
        for name in self.names:
            for key, value in PROBES[name](learner, *self._chosen):
                row[key] = value if value is not None and math.isfinite(value) else None
        self.directory.append_probe({**row, "seconds": time.monotonic() - began})

    def _choose(self) -> tuple[Tensor, Tensor]:
        """Training images without augmentation, the same at every epoch."""
        size = min(IMAGES, self._at_once, len(self._images))
        order = derive(seed_of(self.config, "order"), "probes")
        last = len(self._images) // size - 1  # the last whole batch: workers would read ahead of any other
        return next(iter(self._images.batches(size, order, None, first_step=last)))
