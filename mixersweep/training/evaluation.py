"""What a network makes of images: its mean loss and accuracy, and its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.config import Config
from mixersweep.data.batches import Batches, share_of
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World

MOST = 512
"""Images at once: without gradients, more than in training; see ``batch_size``."""


class Sums:
    """Summed loss and correct predictions of each of so many batches, on the device: ``values`` (2, batches), float64.

    One batch costs a few kernels; the host waits for the device only where it asks.
    """

    def __init__(self, batches: int, device: torch.device, values: Tensor | None = None) -> None:
        zeros = torch.zeros(2, batches, dtype=torch.float64, device=device)
        self.values = zeros if values is None else values.to(device)

    def add(self, batch: int, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Batch 0, 1, ...: its mean loss (), logits (B, classes), labels (B,)."""
        torch.mul(loss, len(labels), out=self.values[0, batch])
        torch.sum(logits.argmax(1) == labels, dim=0, out=self.values[1, batch])

    def first_bad(self) -> int | None:
        """The first batch whose loss is not finite; waits for the device."""
        bad = self.values[0].isfinite().logical_not().nonzero()
        return int(bad[0]) if len(bad) else None

    def means(self, images: int, world: World) -> tuple[float, float]:
        """Mean loss and accuracy over the images of all processes; waits for the device."""
        loss, correct = world.total(self.values.clone()).sum(1).tolist()
        return loss / images, correct / images


def batch_size(config: Config) -> int:
    """Images at once in evaluation: never more memory than training takes."""
    return min(MOST, 4 * math.ceil(config.batch_size / config.accumulation))


def evaluate(
    learner: Learner, images: Batches, world: World, after_each: Callable[[], None], *, averaged: bool = False
) -> tuple[float | None, float | None]:
    """Mean loss and accuracy in eval mode, without augmentation; None for no images. ``after_each`` batch is called."""
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
    """Arrays (N,), of every image in order: the predicted class, the probability of the true one, and that one."""
    device, size = learner.device, batch_size(learner.config)
    predicted, true = torch.zeros(2, len(images), dtype=torch.int32, device=device)
    probability = torch.zeros(len(images), device=device)
    shares = images.batches(size, None, None, rank=world.rank, world_size=world.size)
    for first, (x, labels) in zip(range(0, len(images), size), shares, strict=True):
        if not len(labels):
            continue
        mine = first + share_of(min(size, len(images) - first), world.rank, world.size)
        probabilities = learner.logits(x).softmax(1)
        predicted[mine] = probabilities.argmax(1).int()
        probability[mine] = probabilities.gather(1, labels[:, None]).squeeze(1)
        true[mine] = labels.int()
    for values in (predicted, probability, true):
        world.total(values)  # each image is one process's, and zero in the others
    named = {"prediction": predicted, "probability_of_label": probability, "label": true}
    return {name: values.cpu().numpy() for name, values in named.items()}
