"""A network and what changes it: one optimisation step, in one process or in several, in any precision."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.errors import UserError
from mixersweep.models import build, checkpointed, stochastic_depth
from mixersweep.models.mlp import choose_storage
from mixersweep.runs import Run
from mixersweep.seeds import derive
from mixersweep.training.checkpoint import Checkpoint
from mixersweep.training.ema import Average
from mixersweep.training.mixing import Mixing
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.parallel import World
from mixersweep.training.precision import autocast, set_precision


class Learner:
    """The network of a run with its optimiser, loss scaler and average of weights.

    ``storage`` is asked for, and says afterwards what was chosen (``choose_storage``).
    """

    def __init__(self, run: Run, device: torch.device, world: World, storage: str) -> None:
        self.config, self.device, self.world = run.config, device, world
        config = self.config
        self.scaler = set_precision(config.precision, device)
        network = build(config, run.architecture).to(device)
        self.storage = choose_storage(network, storage, device, config.batch_size)
        network = self._normalised_together(network)
        self.network = checkpointed(network) if config.gradient_checkpointing else network
        self.optimizer = make_optimizer(self.network, config.optim)
        self.average = None if config.ema is None else Average(self.network, config.ema)
        together = world.trained_together(self.network, device)
        self._forward = torch.compile(together) if config.compile else together
        self._plain = torch.compile(self.network) if config.compile else self.network
        augment, smoothing = config.augment, config.optim.label_smoothing
        self.mixing = Mixing(augment.mixup, augment.cutmix, augment.switch_probability, config.data.classes, smoothing)
        self._smoothing = 0.0 if self.mixing.on else smoothing

    def step(
        self, images: Tensor, labels: Tensor, *, count: int, rate: float, step: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """One update at a learning rate by this process's share of a batch of ``count`` images.

        ``step`` counts from the start of training; ``seed`` decides what is random in it. Returns the mean loss () over
        the share, and its logits (B, classes). Nothing waits for the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        share = len(images)
        if not share:  # the others have the last images; this process still takes part, with a weight of zero
            images = images.new_zeros(1, *images.shape[1:])
            labels = labels.new_zeros(1)
        targets = labels
        if self.mixing.on:
            images, targets = self.mixing(images, labels, derive(seed, "mixing"))
        some = math.ceil(len(images) / self.config.accumulation)
        losses, logits = [], []
        for first in range(0, len(images), some):
            x, wanted = images[first : first + some], targets[first : first + some]
            self._draw_depth(seed, count, first, len(x))
            with self._unsynchronised(more=first + some < len(images)):
                with autocast(self.config.precision, self.device):
                    out = self._forward(x)
                    loss = F.cross_entropy(out, wanted, label_smoothing=self._smoothing)
                weight = len(x) * self.world.size / count if share else 0.0
                self.scaler.scale(loss if weight == 1 else loss * weight).backward()
            losses.append(loss.detach() * (len(x) / len(images)) if len(x) < len(images) else loss.detach())
            logits.append(out.detach())
        self._update(step)
        if not share:
            return losses[0] * 0, logits[0][:0]
        return (losses[0], logits[0]) if len(losses) == 1 else (torch.stack(losses).sum(), torch.cat(logits))

    def logits(self, images: Tensor, *, averaged: bool = False) -> Tensor:
        """Of images in evaluation, by the network or by the average of its weights, in fp32."""
        network: Any = self._plain
        if averaged:
            assert self.average is not None
            network = self.average.module
        network.eval()
        with torch.no_grad(), autocast(self.config.precision, self.device):
            found: Tensor = network(images)
        return found.float()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss () of a forward pass in training mode, by the plain network; for finding what is wrong in it."""
        self._draw_depth(0, len(images) * self.world.size, 0, len(images))
        with torch.no_grad(), autocast(self.config.precision, self.device):
            return F.cross_entropy(self.network(images), labels)

    def save_to(self, state: Checkpoint) -> None:
        """Put what is learned into a checkpoint."""
        state.model, state.optimizer = self.network.state_dict(), self.optimizer.state_dict()
        state.scaler = self.scaler.state_dict()
        state.average = {} if self.average is None else self.average.state_dict()

    def load_from(self, state: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        if self.average is not None:
            self.average.load_state_dict(state.average)

    def train(self) -> None:
        """Training mode."""
        self.network.train()

    def _update(self, step: int) -> None:
        clip_norm = self.config.optim.clip_norm
        if clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network, step)

    def _draw_depth(self, seed: int, count: int, first: int, some: int) -> None:
        if self.config.stochastic_depth:
            size, rank = self.world.size, self.world.rank
            part = slice(rank + size * first, rank + size * (first + some), size)
            stochastic_depth.draw(self.network, derive(seed, "depth"), max(count, part.stop), self.device, part)

    def _unsynchronised(self, *, more: bool) -> AbstractContextManager[Any]:
        """Gradients stay in this process while ``more`` of the batch is to come."""
        unsynchronised = getattr(self._forward, "no_sync", None)
        return unsynchronised() if more and unsynchronised is not None else nullcontext()

    def _normalised_together(self, network: nn.Module) -> nn.Module:
        """Networks that normalise over a batch need the whole batch at once, wherever its images are."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
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
