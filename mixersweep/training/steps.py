"""The steps of a run: the images of each, its learning rate, and the seed of its random choices.

All of that is a function of the settings, the epoch and the number of the step, so training can resume at any step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mixersweep.config import Config
from mixersweep.data.batches import Batches, rank_positions
from mixersweep.seeds import derive, seed_of
from mixersweep.training.parallel import World
from mixersweep.training.schedule import learning_rate, rewired_share


@dataclass(frozen=True)
class Step:
    """Step ``number`` (from 0) of ``epoch`` (from 1); ``index`` (from 0) is its number in all of training.

    ``images`` (B, ch, H, W) and ``labels`` (B,) are this process's part of the whole batch of ``count`` images.
    ``augmentation`` is the seed of the epoch's random choices, ``rewired`` the share of the connections that is
    rewired, 0 at most steps.
    """

    epoch: int
    number: int
    index: int
    images: Tensor
    labels: Tensor
    count: int
    rate: float
    augmentation: int
    rank: int = 0
    world_size: int = 1
    rewired: float = 0.0

    @property
    def positions(self) -> Tensor:
        """The positions of the images in the whole batch, int64 (B,)."""
        return rank_positions(self.count, self.rank, self.world_size)

    @property
    def seed(self) -> int:
        """The seed of this step's random choices."""
        return derive(self.augmentation, "step", self.number)


class Steps:
    """All steps of a run, for one process; ``len`` is the number in an epoch."""

    def __init__(self, config: Config, images: Batches, world: World) -> None:
        self._config, self._images, self._world = config, images, world

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._config.batch_size)

    def rate(self, epoch: int, number: int) -> float:
        """The learning rate of a step."""
        index = (epoch - 1) * len(self) + number
        return learning_rate(self._config.optim, index, len(self), self._config.epochs)

    def rewired(self, epoch: int, number: int) -> float:
        """The share of the connections that is rewired at a step."""
        index = (epoch - 1) * len(self) + number
        return rewired_share(self._config.optim, index, len(self), self._config.epochs)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """The steps of an epoch from step ``first`` on."""
        config, world = self._config, self._world
        augmentation = derive(seed_of(config, "augmentation"), epoch)
        batches = self._images.batches(
            config.batch_size,
            derive(seed_of(config, "order"), epoch),
            augmentation,
            first_step=first,
            rank=world.rank,
            world_size=world.size,
        )
        for number, (images, labels) in enumerate(batches, start=first):
            count = min(config.batch_size, len(self._images) - number * config.batch_size)
            yield Step(
                epoch=epoch,
                number=number,
                index=(epoch - 1) * len(self) + number,
                images=images,
                labels=labels,
                count=count,
                rate=self.rate(epoch, number),
                augmentation=augmentation,
                rank=world.rank,
                world_size=world.size,
                rewired=self.rewired(epoch, number),
            )

    def between(self, first: tuple[int, int], last_epoch: int) -> Iterator[Step]:
        """The steps from ``first`` (an epoch and a step in it) to the end of ``last_epoch``."""
        for epoch in range(first[0], last_epoch + 1):
            yield from self.epoch(epoch, first[1] if epoch == first[0] else 0)
