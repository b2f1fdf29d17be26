"""Evaluate a network on images: its mean loss, its accuracy and its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.config import Config
from mixersweep.data.batches import Batches, rank_positions
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World

MAX_BATCH = 512
"""The most images in an evaluated batch; see ``batch_size``."""


class Sums:
    """The summed loss and correct predictions of each batch, on the device: ``values``, float64 (2, batches).

    Adding a batch takes a few kernels and does not wait for the device.
    """

    def __init__(self, batches: int, device: torch.device, values: Tensor | None = None) -> None:
        zeros = torch.zeros(2, batches, dtype=torch.float64, device=device)
        self.values = zeros if values is None else values.to(device)

    def add(self, batch: int, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Set the sums of batch 0, 1, ... from its mean loss (), logits (B, classes) and labels (B,)."""
        torch.mul(loss, len(labels), out=self.values[0, batch])
        torch.sum(logits.argmax(1) == labels, dim=0, out=self.values[1, batch])

    def first_nonfinite(self) -> int | None:
        """The first batch whose loss is not finite, None if all are; waits for the device."""
        nonfinite = self.values[0].isfinite().logical_not().nonzero()
        return int(nonfinite[0]) if len(nonfinite) else None

    def means(self, images: int, world: World) -> tuple[float, float]:
        """Mean loss and accuracy over the images of all processes; waits for the device."""
        loss, correct = world.sum(self.values.clone()).sum(1).tolist()
        return loss / images, correct / images


def batch_size(config: Config) -> int:
    """The batch size of evaluation, which never takes more memory than training does."""
    return min(MAX_BATCH, 4 * math.ceil(config.batch_size / config.accumulation))


def evaluate(
    learner: Learner, images: Batches, world: World, after_each: Callable[[], None], *, averaged: bool = False
) -> tuple[float | None, float | None]:
    """Mean loss and accuracy in eval mode, without augmentation; both None if there are no images.

    ``after_each`` is called after each batch.
    """
    if not len(images):
        return None, None
    size = batch_size(learner.config)
    sums = Sums(math.ceil(len(images) / size), learner.device)
    for batch, (x, labels) in enumerate(images.batches(size, None, None, rank=world.rank, world_size=world.size)):
        if len(labels):
            logits = learner.logits(x, averaged=averaged)
            sums.add(batch, F.cross_entropy(logits, labels), logits, labels)
        after_each()
    return sums.means(len(images), world)


def predict(learner: Learner, images: Batches, world: World) -> dict[str, Any]:
    """Arrays (N,) over all images in order: the predicted class, the probability of the true class, the true class."""
    device, size = learner.device, batch_size(learner.config)
    predicted, true = torch.zeros(2, len(images), dtype=torch.int32, device=device)
    probability = torch.zeros(len(images), device=device)
    shares = images.batches(size, None, None, rank=world.rank, world_size=world.size)
    for first, (x, labels) in zip(range(0, len(images), size), shares, strict=True):
        if not len(labels):
            continue
        mine = first + rank_positions(min(size, len(images) - first), world.rank, world.size)
        probabilities = learner.logits(x).softmax(1)
        predicted[mine] = probabilities.argmax(1).int()
        probability[mine] = probabilities.gather(1, labels[:, None]).squeeze(1)
        true[mine] = labels.int()
    for values in (predicted, probability, true):
        world.sum(values)  # each image is one process's, and zero in the others
    named = {"prediction": predicted, "probability_of_label": probability, "label": true}
    return {name: values.cpu().numpy() for name, values in named.items()}
