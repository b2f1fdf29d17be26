"""The packed engine: R runs that differ only in seeds and rates (``packing``), trained as one program.

Weights, buffers, optimiser state, rates and seeds have a leading axis of runs; the network is called for all of them by
``layers.pack``. What changes from step to step, the batch and the rates, is looked up in tensors on the device by a
counter there, so that each step runs the same kernels: on a GPU it is captured once as a CUDA graph and replayed, with
one launch a step instead of hundreds. Nothing waits for the device within an epoch, but where connections move
(``packed_rewire``), between two such programs.

A run computes the same numbers whatever the number of runs, its index among them, and the other runs. On a CPU, where
rounding depends on the sizes of tensors and larger ones are no faster, the runs are computed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.data.batches import Batches, DeviceImages, epoch_order
from mixersweep.data.splits import Splits
from mixersweep.layers import pack
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.runs import Run
from mixersweep.seeds import derive, seed_of
from mixersweep.training.checkpoint import Checkpoint
from mixersweep.training.evaluation import batch_size
from mixersweep.training.flat_parameters import FlatParameters
from mixersweep.training.graphs import Captured
from mixersweep.training.learner import Learner
from mixersweep.training.packed_optimizer import PackedOptimizer, make_packed
from mixersweep.training.packed_rewire import PackedRewiring
from mixersweep.training.parallel import World
from mixersweep.training.precision import autocast, set_precision
from mixersweep.training.rewire import kind_of
from mixersweep.training.schedule import learning_rate, updates_before

MIN_RUNS = 2
"""The fewest runs computed at once on a GPU: for a single matrix cuBLAS takes another routine than for two, with other
last digits. So a run that is alone is computed twice, and the copy ignored."""


class Packed:
    """The engine (``engine.Engine``) that trains R runs as one program."""

    name = "packed"

    def __init__(
        self,
        runs: Sequence[Run],
        device: torch.device,
        splits: Sequence[Splits],
        storage: str,
        kept: Sequence[Checkpoint | None],
        at_once: int | None = None,
    ) -> None:
        """``at_once`` is the number of runs computed together, by default all on a GPU and one on a CPU."""
        self.count = len(runs)
        if device.type == "cuda" and self.count < MIN_RUNS:
            runs, splits, kept = [runs[0]] * MIN_RUNS, [splits[0]] * MIN_RUNS, [kept[0]] * MIN_RUNS
        self._runs, self.configs = runs, [run.config for run in runs]
        self.config, self.device = self.configs[0], device
        self._train, self._test = [_as_device_images(each.train) for each in splits], _as_device_images(splits[0].test)
        of_runs = [_as_device_images(each.validation) for each in splits]
        self._validation = (
            torch.stack([each.centre_crops() for each in of_runs]).to(device),
            torch.stack([each.labels for each in of_runs]),
        )
        self._test_crops = self._test.centre_crops().to(device), self._test.labels
        every = at_once or (len(runs) if device.type == "cuda" else 1)
        self._parts = [slice(first, min(first + every, len(runs))) for first in range(0, len(runs), every)]
        self._set_up_learning(kept, storage)
        self._allocate_step_tensors()

    def _set_up_learning(self, kept: Sequence[Checkpoint | None], storage: str) -> None:
        """Set up weights, buffers, optimiser and averages, from checkpoints or anew."""
        config, device = self.config, self.device
        set_precision(config.precision, device)
        networks = [build(run.config, run.architecture) for run in self._runs]
        for network, state in zip(networks, kept, strict=True):
            if state is not None:
                network.load_state_dict(state.model)
        self._weights = FlatParameters([dict(network.named_parameters()) for network in networks], device)
        self._network = networks[0].to(device)
        self.storage, *_ = [choose_storage(network, storage, device, config.batch_size) for network in networks]
        buffers = [dict(network.named_buffers()) for network in networks]
        self._buffers = {name: torch.stack([own[name].to(device) for own in buffers]) for name in buffers[0]}
        self._stored = [name for name in self._network.state_dict() if name in self._buffers]
        self._optimizer: PackedOptimizer = make_packed(networks, [c.optim for c in self.configs], self._weights.flat)
        self._averages: dict[str, Tensor] = {}
        if config.ema is not None:
            self._averages = {"weights": self._weights.flat.clone()}
            self._averages |= {name: self._buffers[name].clone() for name in self._stored}
        for run_index, state in enumerate(kept):
            if state is not None:
                self._load_run(run_index, state)
        self._leaves = [self._weights.leaves(part) for part in self._parts]
        self._rewiring = self._make_rewiring(networks)

    def _make_rewiring(self, networks: Sequence[nn.Module]) -> PackedRewiring | None:
        """The rewiring of the runs, whose networks come to share the pack's memory; None for static connections."""
        kind = kind_of(self.config)
        if kind is None:
            return None
        flat = [*self._optimizer.state, *([self._averages["weights"]] if self._averages else [])]
        views, *beside = (self._weights.views(each) for each in (self._weights.flat, *flat))
        return PackedRewiring(networks, self.configs, kind, self.steps, views | self._buffers, beside)

    def _allocate_step_tensors(self) -> None:
        """Allocate the tensors that steps read and update; CUDA graphs need their addresses fixed."""
        device, runs, steps, images = self.device, len(self._runs), self.steps, len(self._train[0])
        self._starts = torch.zeros(runs, images, dtype=torch.int64, device=device)
        self._labels = torch.zeros_like(self._starts)
        self._mirrored = torch.zeros_like(self._starts) if self._store.flip else None
        self._labels_of = [each.labels.cpu() for each in self._train]
        self._drawing, self._drawn = ThreadPoolExecutor(1), dict[int, Future[list[Tensor]]]()
        self._rates = torch.zeros(steps, runs, device=device)
        self._smoothing = self._per_run("label_smoothing")
        self._clip = None if self.config.optim.clip_norm is None else self._per_run("clip_norm")
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # the step in the epoch
        self._index = torch.zeros(1, dtype=torch.int64, device=device)  # and of training
        self._updates = torch.zeros(1, dtype=torch.int64, device=device)  # the number of the optimiser's before it
        self.sums = torch.zeros(runs, 2, steps, dtype=torch.float64, device=device)
        self._evaluated = torch.zeros(runs, 2, dtype=torch.float64, device=device)
        changing = [self._weights.flat, *self._optimizer.state, *self._averages.values()]
        changing += [self._buffers[name] for name in self._stored]
        changing += [self._number, self._index, self._updates, self.sums, self._evaluated]
        self._captured = Captured(device, changing)

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return math.ceil(len(self._train[0]) / self.config.batch_size)

    def epoch(self, epoch: int, first: int, sums: Sequence[Tensor | None]) -> Iterator[int]:
        """Train an epoch from step ``first`` on, each step by one captured program; see ``Engine.epoch``."""
        self._prepare(epoch, first)
        self.sums.zero_()
        for run_index, of_run in enumerate(sums):
            if of_run is not None:
                self.sums[run_index] = of_run.to(self.device)
        sizes = _batch_sizes(len(self._train[0]), self.config.batch_size)
        before = (epoch - 1) * self.steps
        for number in range(first, self.steps):
            if not self._rewire(before + number, sizes[number]):
                self._captured.run(f"train {sizes[number]}", self._step, sizes[number])
            yield number

    def is_the_same_alone(self) -> bool:
        """Whether the first runs have bitwise the same gradients without the others, tested by computing both.

        Our own kernels guarantee it; libraries may choose another routine for another total size.
        """
        if len(self.configs) <= MIN_RUNS or len(self._parts) > 1:
            return True
        before = {name: self._buffers[name].clone() for name in self._stored}
        self._prepare(1, 0)
        self._network.train()
        few = slice(0, MIN_RUNS)
        same = True
        for size in set(_batch_sizes(len(self._train[0]), self.config.batch_size)):
            alone, *_ = self._gradients(few, self._weights.leaves(few), size)
            together, *_ = self._gradients(self._parts[0], self._leaves[0], size)
            same = same and torch.equal(alone, together[few])
        for name, value in before.items():
            self._buffers[name].copy_(value)
        return same

    def evaluate(
        self, split: str, after_each: Callable[[], None], *, averaged: bool = False
    ) -> list[tuple[float | None, float | None]]:
        """The mean loss and accuracy of each run on its ``validation`` or the ``test`` images; None without images."""
        images = self._count_images(split)
        if not images:
            return [(None, None)] * self.count
        self._evaluated.zero_()
        self._number.zero_()
        for size in _batch_sizes(images, batch_size(self.config)):
            self._captured.run(f"evaluate {split} {size} {averaged}", self._evaluate_batch, split, size, averaged)
            after_each()
        found = (self._evaluated / images)[: self.count].tolist()
        return [(loss, accuracy) for loss, accuracy in found]

    def predict(self) -> list[dict[str, Any]]:
        """For each run, arrays (N,) over all test images in order, as from ``evaluation.predict``."""
        parts, (centres, labels) = [], self._test_crops
        for some in centres.split(batch_size(self.config)):
            images = self._crop_unaugmented(self._test, some)
            parts.append(torch.cat([self._logits(part, images, averaged=False) for part in self._parts]))
        probabilities = torch.cat(parts, 1).softmax(-1)
        predicted = probabilities.argmax(-1).int().cpu().numpy()
        probability = probabilities.gather(2, labels.expand(len(probabilities), -1)[..., None]).squeeze(2).cpu().numpy()
        true = labels.int().cpu().numpy()
        return [
            {"prediction": predicted[run_index], "probability_of_label": probability[run_index], "label": true}
            for run_index in range(self.count)
        ]

    def sums_of(self, run_index: int) -> Tensor:
        """The sums of one run, float64 (2, steps), on the CPU; see ``Engine.sums_of``."""
        return self.sums[run_index].cpu()

    def means(self) -> list[tuple[float, float]]:
        """The mean training loss and accuracy of each run over the epoch."""
        means = self.sums[: self.count].sum(2) / len(self._train[0])
        return [(loss, accuracy) for loss, accuracy in means.tolist()]

    def nonfinite_codes(self) -> list[int]:
        """A code for each run, 0 if its losses and weights are finite; see ``Engine.nonfinite_codes``."""
        losses = self.sums[: self.count, 0].isfinite().logical_not()
        by_loss = (self.steps + 1 - losses.int().argmax(1)) * losses.any(1)
        by_weights = self._weights.flat[: self.count].isfinite().all(1).logical_not()
        found: list[int] = torch.maximum(by_loss, by_weights.long()).tolist()
        return found

    def save_to(self, run_index: int, state: Checkpoint) -> None:
        """Put the state of one run into its checkpoint, in the format of the eager engine."""
        state.model = self._weights.of(run_index) | {
            name: self._buffers[name][run_index].cpu().clone() for name in self._stored
        }
        names = list(self._network.state_dict())
        state.model = {name: state.model[name] for name in names}
        steps = len(state.rows) * self.steps + state.step
        state.optimizer = self._optimizer.state_of(run_index, self._updates_before(steps))
        state.average = {}
        if self._averages:
            averages = self._weights.of(run_index, self._averages["weights"])
            averages |= {name: self._averages[name][run_index].cpu().clone() for name in self._stored}
            state.average = {f"module.{name}": averages[name] for name in names}

    def _updates_before(self, index: int) -> int:
        """The number of the optimiser's updates before step 0, 1, ... of training."""
        return updates_before(self.config.optim, index, self.steps, self.config.epochs)

    def learner(self, run_index: int) -> Learner:
        """A learner with a copy of one run's present weights."""
        learner = Learner(self._runs[run_index], self.device, World(), self.storage)
        weights = self._weights.of(run_index) | {name: self._buffers[name][run_index] for name in self._stored}
        learner.network.load_state_dict(weights)
        return learner

    def extra_metrics(self, run_index: int) -> dict[str, float]:
        """No further metrics."""
        del run_index
        return {}

    def _load_run(self, run_index: int, state: Checkpoint) -> None:
        self._optimizer.load(run_index, state.optimizer)
        if self._averages:
            averages = {name.removeprefix("module."): value for name, value in state.average.items()}
            self._weights.put(run_index, averages, self._averages["weights"])
            for name in self._stored:
                self._averages[name][run_index] = averages[name].to(self.device)

    def _prepare(self, epoch: int, first: int) -> None:
        """Fill the tensors of an epoch: the order and augmentation of each run's images, and its learning rates.

        Those of the next epoch are drawn in a background thread: for dozens of runs drawing takes a part of an epoch.
        """
        drawn = self._drawn.pop(epoch, None)
        starts, labels, *mirrored = self._draw(epoch) if drawn is None else drawn.result()
        self._starts.copy_(starts)
        self._labels.copy_(labels)
        if self._mirrored is not None:
            self._mirrored.copy_(mirrored[0])
        if epoch < self.config.epochs:
            self._drawn = {epoch + 1: self._drawing.submit(self._draw, epoch + 1)}
        before = (epoch - 1) * self.steps
        rates = [
            [learning_rate(c.optim, before + number, self.steps, c.epochs) for c in self.configs]
            for number in range(self.steps)
        ]
        self._rates.copy_(torch.tensor(rates))
        self._number.fill_(first)
        self._index.fill_(before + first)
        self._updates.fill_(self._updates_before(before + first))

    def _draw(self, epoch: int) -> list[Tensor]:
        """Draw an epoch: int64 (R, N) on the CPU, crop positions, labels and, with ``flip``, 1 for mirrored images."""
        of_runs = []
        for config, images, labels in zip(self.configs, self._train, self._labels_of, strict=True):
            order = epoch_order(len(images), derive(seed_of(config, "order"), epoch))
            start, *mirrored = images.draw(derive(seed_of(config, "augmentation"), epoch))
            of_runs.append([values[order] for values in (start, labels, *mirrored)])
        return [torch.stack(values) for values in zip(*of_runs, strict=True)]

    def _step(self, size: int) -> None:
        """Update every run once, on its next ``size`` images."""
        self._network.train()
        for part, leaves in zip(self._parts, self._leaves, strict=True):
            self._step_runs(part, leaves, size)
        self._number += 1
        self._index += 1
        self._updates += 1

    def _rewire(self, index: int, size: int) -> bool:
        """Rewire all runs if that is due at a step; returns whether their gradients took the place of its update."""
        if self._rewiring is None or not self._rewiring.is_due(index):
            return False
        if self._rewiring.kind == "set":
            self._rewiring.rewire_at_random(index)
            return False
        for run_index in range(len(self._runs)):
            part = slice(run_index, run_index + 1)
            images, labels = self._next_batch(part, size)
            with self._rewiring.by_gradients(run_index, index) as network:
                with autocast(self.config.precision, self.device):
                    logits = network(images[0]).float()[None]
                losses = _cross_entropy(logits, labels, self._smoothing[part])
                losses.sum().backward()
            self._finish_step(part, losses.detach(), (logits.argmax(-1) == labels).sum(1), size)
        self._number += 1
        self._index += 1
        return True

    def _step_runs(self, part: slice, leaves: dict[str, Tensor], size: int) -> None:
        """Update the runs of ``part`` once."""
        flat, losses, correct = self._gradients(part, leaves, size)
        with torch.no_grad():
            if self._clip is not None:
                norms = flat.square().sum(1).sqrt()
                flat = flat * (self._clip[part] / (norms + 1e-6)).clamp(max=1.0)[:, None]
            rates = self._rates.index_select(0, self._number)[0]
            self._optimizer.update(part, flat, rates[part], self._updates)
            self._finish_step(part, losses, correct, size)

    @torch.no_grad()
    def _finish_step(self, part: slice, losses: Tensor, correct: Tensor, size: int) -> None:
        """Update the averages of some runs after a step, and note its mean losses and correct predictions, (R,)."""
        self._update_average(part)
        row = torch.stack([losses.double() * size, correct.double()], 1)
        self.sums[part].index_copy_(2, self._number, row[..., None])

    def _gradients(self, part: slice, leaves: dict[str, Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (R, P), mean losses (R,) and correct predictions (R,) of some runs on the next ``size`` images."""
        images, labels = self._next_batch(part, size)
        logits = self._forward(leaves, self._buffers, images, part)
        losses = _cross_entropy(logits, labels, self._smoothing[part])
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        flat = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
        return flat, losses.detach(), (logits.argmax(-1) == labels).sum(1)

    def _next_batch(self, part: slice, size: int) -> tuple[Tensor, Tensor]:
        """The next ``size`` images of some runs, (R, B, ch, H, W), augmented, and their labels, (R, B)."""
        which = self._number * self.config.batch_size + torch.arange(size, device=self.device)
        return self._augment(part, which), self._labels[part].index_select(1, which)

    def _update_average(self, part: slice) -> None:
        """Update the averaged weights of some runs, as ``ema.Average`` does."""
        if self.config.ema is None:
            return
        step = self._index.double()
        decay = torch.minimum((1 + step) / (10 + step), torch.full_like(step, self.config.ema))
        weight = (1 - decay).float()
        for name, average in self._averages.items():
            now = self._weights.flat if name == "weights" else self._buffers[name]
            if average.is_floating_point():
                average[part].lerp_(now[part], weight)
            else:
                average[part].copy_(now[part])

    @torch.no_grad()
    def _evaluate_batch(self, split: str, size: int, averaged: bool) -> None:
        """Add the losses and correct predictions of the next ``size`` images to ``_evaluated``."""
        which = self._number * batch_size(self.config) + torch.arange(size, device=self.device)
        for part in self._parts:
            if split == "test":
                starts, labels = self._test_crops
                images, labels = self._crop_unaugmented(self._test, starts[which]), labels[which][None]
            else:
                starts, labels = (values[part].index_select(1, which) for values in self._validation)
                images = self._crop_unaugmented(self._store, starts.flatten()).unflatten(0, starts.shape)
            logits = self._logits(part, images, averaged=averaged)
            labels = labels.expand(len(logits), -1)
            losses = _cross_entropy(logits, labels, torch.zeros_like(self._smoothing[part]))
            right = (logits.argmax(-1) == labels).sum(1)
            self._evaluated[part] += torch.stack([losses.double() * size, right.double()], 1)
        self._number += 1

    def _forward(
        self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor, part: slice
    ) -> Tensor:
        """The logits (R, B, classes), fp32, of the runs of ``part``: ``weights`` are theirs, ``buffers`` those of all.

        Images are (R, B, ch, H, W), or (B, ch, H, W) if all runs see the same.
        """

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(self._network, (weights, buffers), (images,))
            return logits

        some = {name: buffer[part] for name, buffer in buffers.items()}
        with autocast(self.config.precision, self.device):
            in_dims = (0, 0, 0 if images.dim() == 5 else None)
            logits: Tensor = pack.call(one, dict(weights), some, images, in_dims=in_dims)
        return logits.float()

    @torch.no_grad()
    def _logits(self, part: slice, images: Tensor, *, averaged: bool) -> Tensor:
        """The logits (R, B, classes) of some runs in eval mode, by their weights or averaged weights."""
        self._network.eval()
        flat, buffers = self._weights.flat, self._buffers
        if averaged:
            flat = self._averages["weights"]
            buffers = {name: self._averages.get(name, buffer) for name, buffer in buffers.items()}
        return self._forward(self._weights.views(flat[part]), buffers, images, part)

    def _augment(self, part: slice, which: Tensor) -> Tensor:
        """The augmented training images of some runs at positions ``which`` of the epoch, (R, B, ch, H, W)."""
        starts = self._starts[part].index_select(1, which)
        mirrored = None if self._mirrored is None else self._mirrored[part].index_select(1, which).flatten()
        store = self._store
        images: Tensor = store.normalise_and_erase(store.cropped(starts.flatten(), mirrored), None, None)
        return images.view(*starts.shape, *images.shape[1:])

    @staticmethod
    def _crop_unaugmented(store: DeviceImages, starts: Tensor) -> Tensor:
        """The images, (B, ch, H, W), whose crops begin at ``starts``, not mirrored."""
        images: Tensor = store.normalise_and_erase(store.cropped(starts), None, None)
        return images

    @property
    def _store(self) -> DeviceImages:
        """The images on the device, which hold those of training and validation of all runs."""
        return self._train[0]

    def _count_images(self, split: str) -> int:
        return len(self._test) if split == "test" else self._validation[0].shape[1]

    def _per_run(self, setting: str) -> Tensor:
        """A setting of the optimiser for each run, (R,)."""
        return torch.tensor([getattr(config.optim, setting) for config in self.configs], device=self.device)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """The mean loss of each run, (R,), from logits (R, B, classes), labels (R, B) and label smoothing (R,)."""
    log_p = logits.log_softmax(-1)
    of_label = F.nll_loss(log_p.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
    return (1 - smoothing) * of_label - smoothing * log_p.mean((1, 2))


def _batch_sizes(images: int, size: int) -> list[int]:
    """The sizes of the batches that so many images make; the last may be smaller."""
    return [min(size, images - first) for first in range(0, images, size)]


def _as_device_images(images: Batches) -> DeviceImages:
    assert isinstance(images, DeviceImages), "packs have their images on the device"
    return images
