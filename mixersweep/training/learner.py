"""The learner: a network with its optimiser and one training step, in one process or several, in any precision."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.config import Config
from mixersweep.errors import UserError
from mixersweep.models import build, checkpointed, stochastic_depth
from mixersweep.models.mlp import choose_storage
from mixersweep.runs import Run
from mixersweep.seeds import derive
from mixersweep.training.checkpoint import Checkpoint
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.parallel import World
from mixersweep.training.precision import autocast, set_precision
from mixersweep.training.rewire import make_rewiring
from mixersweep.training.steps import Step

if TYPE_CHECKING:
    from mixersweep.training.ema import Average
    from mixersweep.training.mixing import Mixing


MIN_LOSS_SCALE = 1e-6
"""The smallest loss scale of fp16 that counts as finite; each overflow halves the scale, so it takes 36 in a row."""


class Learner:
    """The network of a run with its optimiser, loss scaler and averaged weights.

    The argument ``storage`` is the setting, the attribute ``storage`` what ``choose_storage`` made of it. Raises
    ``UserError`` for settings under which the network cannot normalise over whole batches.
    """

    def __init__(self, run: Run, device: torch.device, world: World, storage: str) -> None:
        self.config, self.device, self.world = run.config, device, world
        config = self.config
        self.scaler = set_precision(config.precision, device)
        network = build(config, run.architecture).to(device)
        self.storage = choose_storage(network, storage, device, config.batch_size)
        self.needs_whole_batches = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
        network = self._normalised_together(network)
        self.network = checkpointed(network) if config.gradient_checkpointing else network
        self.optimizer = make_optimizer(self.network, config.optim)
        self.average = None if config.ema is None else _average(self.network, config.ema)
        averaged = None if self.average is None else self.average.module
        self.rewiring = make_rewiring(config, self.network, self.optimizer, averaged, world)
        self._forward = world.trained_together(self.network, device)
        self._compiled = torch.compile(self._forward, dynamic=False) if config.compile else self._forward
        self.mixing = _mixing(config)
        self._smoothing = 0.0 if self.mixing is not None else config.optim.label_smoothing

    def step(self, step: Step) -> tuple[Tensor, Tensor]:
        """Update the weights once; returns the mean loss () and the logits (B, classes).

        Both are of this process's part of the batch. Does not wait for the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = step.rate * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        images, labels = step.images, step.labels
        share = len(images)
        if not share:  # the others have the last images; this process still takes part, with a weight of zero
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1)
        targets = labels
        if self.mixing is not None:
            images, targets = self.mixing(images, labels, derive(step.seed, "mixing"))
        some = math.ceil(len(images) / self.config.accumulation)
        whole = step.count == self.config.batch_size  # the smaller last batch is not worth compiling for
        losses, logits = [], []
        with nullcontext() if self.rewiring is None else self.rewiring.during(step):
            for first in range(0, len(images), some):
                part = slice(first, first + some)
                x = images[part]
                self._draw_depth(step, part)
                with self._unsynchronised(more=first + some < len(images)):
                    loss, out = self._loss(self._compiled if whole else self._forward, x, targets[part])
                    weight = len(x) * self.world.size / step.count if share else 0.0
                    self.scaler.scale(loss if weight == 1 else loss * weight).backward()
                losses.append(loss.detach() * (len(x) / len(images)) if len(x) < len(images) else loss.detach())
                logits.append(out.detach())
        self._update(step)
        if not share:
            return losses[0] * 0, logits[0][:0]
        return (losses[0], logits[0]) if len(losses) == 1 else (torch.stack(losses).sum(), torch.cat(logits))

    def logits(self, images: Tensor, *, averaged: bool = False) -> Tensor:
        """Logits (B, classes) in eval mode, fp32, by the network or by its averaged weights."""
        network = self.network
        if averaged:
            assert self.average is not None
            network = self.average.module
        network.eval()
        with torch.no_grad(), autocast(self.config.precision, self.device):
            found: Tensor = network(images)
        return found.float()

    @torch.no_grad()
    def loss(self, step: Step) -> Tensor:
        """The training loss () on this process's part of the batch, uncompiled, to find where it is not finite."""
        if not len(step.images):
            return torch.zeros(())
        self._draw_depth(step)
        images, targets = step.images, step.labels
        if self.mixing is not None:
            images, targets = self.mixing(images, targets, derive(step.seed, "mixing"))
        return self._loss(self.network, images, targets)[0]

    @torch.no_grad()
    def loss_in_evaluation(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss () in eval mode, uncompiled, to find where it is not finite."""
        self.network.eval()
        with autocast(self.config.precision, self.device):
            out = self.network(images)
        return F.cross_entropy(out.float(), labels)

    def is_finite(self) -> bool:
        """Whether all weights are finite and fp16's loss scale has not collapsed; waits for the device."""
        weights = torch.stack([p.detach().isfinite().all() for p in self.network.parameters()]).all()
        return bool(weights) and not (self.scaler.is_enabled() and self.scaler.get_scale() < MIN_LOSS_SCALE)

    def attempt(self, size: int) -> None:
        """Train one step on ``size`` blank images, to see whether they fit into memory; this spoils the weights."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        share = math.ceil(config.batch_size / self.world.size)
        shape = (config.data.image_channels, config.image_size, config.image_size)
        images = torch.zeros(share, *shape, device=self.device)[:size]
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        self.train()
        step = Step(1, 0, 0, images, labels, size, 0.0, 0)
        self._draw_depth(step)
        loss, _ = self._loss(self.network, images, labels)
        self.scaler.scale(loss).backward()
        self._update(step)

    def save_to(self, state: Checkpoint) -> None:
        """Put the states of network, optimiser, loss scaler and averaged weights into a checkpoint."""
        state.model, state.optimizer = self.network.state_dict(), self.optimizer.state_dict()
        state.scaler = self.scaler.state_dict()
        state.average = {} if self.average is None else self.average.state_dict()

    def load_from(self, state: Checkpoint) -> None:
        """Restore the states that ``save_to`` put into a checkpoint."""
        self.network.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        if self.average is not None:
            self.average.load_state_dict(state.average)

    def train(self) -> None:
        """Set the network to training mode."""
        self.network.train()

    def _loss(self, network: Any, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss () in training, and the logits."""
        with autocast(self.config.precision, self.device):
            out: Tensor = network(images)
            return F.cross_entropy(out, targets, label_smoothing=self._smoothing), out

    def _update(self, step: Step) -> None:
        clip_norm = self.config.optim.clip_norm
        if self.rewiring is None or not self.rewiring.instead_of_update(step):
            if clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update(self.network, step.index)

    def _draw_depth(self, step: Step, part: slice = slice(None)) -> None:
        """Draw the branches that stochastic depth drops for some of this process's images.

        A process without images draws for the first image of the batch.
        """
        if self.config.stochastic_depth:
            positions = step.positions[part] if len(step.images) else torch.zeros(1, dtype=torch.int64)
            stochastic_depth.draw(self.network, derive(step.seed, "depth"), step.count, self.device, positions)

    def _unsynchronised(self, *, more: bool) -> AbstractContextManager[Any]:
        """A context without gradient averaging over processes, if ``more`` of the batch is to come."""
        unsynchronised = getattr(self._forward, "no_sync", None)
        return unsynchronised() if more and unsynchronised is not None else nullcontext()

    def _normalised_together(self, network: nn.Module) -> nn.Module:
        """Convert BatchNorm to SyncBatchNorm for several processes.

        Raises ``UserError`` for a network with BatchNorm if the batch is accumulated or spread over CPU processes.
        """
        if not self.needs_whole_batches:
            return network
        name, config = self.config.model.name, self.config
        if config.accumulation > 1:
            raise UserError(
                f"accumulation={config.accumulation}: {name} normalises over the whole batch; use 1, or "
                f"batch_size={max(1, config.batch_size // config.accumulation)}"
            )
        if self.world.size == 1:
            return network
        if self.device.type != "cuda":
            raise UserError(f"device=cpu: {name} normalises over the whole batch; several processes need GPUs for that")
        together: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return together


def _average(network: nn.Module, decay: float) -> Average:
    from mixersweep.training.ema import Average  # timm takes a second to import

    return Average(network, decay)


def _mixing(config: Config) -> Mixing | None:
    augment = config.augment
    if not (augment.mixup or augment.cutmix):
        return None
    from mixersweep.training.mixing import Mixing

    smoothing = config.optim.label_smoothing
    return Mixing(augment.mixup, augment.cutmix, augment.switch_probability, config.data.classes, smoothing)
