"""What trains below the loop: one run, operation by operation (``Eager``), or a pack of runs as one (``packed``).

An engine trains an epoch, evaluates, and hands over what was learnt; the loop knows nothing else of it. Its runs have
places, 0 to ``count`` - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mixersweep.data.splits import Splits
from mixersweep.models.timm import start_from
from mixersweep.runs import Run
from mixersweep.training.checkpoint import Checkpoint
from mixersweep.training.evaluation import Sums, evaluate, predict
from mixersweep.training.learner import Learner
from mixersweep.training.optimizer import pruned
from mixersweep.training.parallel import World
from mixersweep.training.steps import Steps

Evaluation = tuple[float | None, float | None]
"""Mean loss and accuracy; None for no images."""


class Engine(Protocol):
    """Runs that train together."""

    name: str
    count: int
    storage: str

    @property
    def steps(self) -> int:
        """Of an epoch."""

    def is_the_same_alone(self) -> bool:
        """Whether what a run computes is, to the bit, what it would compute without the others."""

    def epoch(self, epoch: int, first: int, sums: Sequence[Tensor | None]) -> Iterator[int]:
        """Train the steps of an epoch from ``first`` on, and yield the number of each when it is under way.

        ``sums`` (2, steps) of each run are the losses and right answers of the steps before.
        """

    def sums_of(self, place: int) -> Tensor:
        """Summed loss and right answers of each step of the epoch so far, float64 (2, steps), on the CPU."""

    def means(self) -> list[tuple[float, float]]:
        """Mean training loss and accuracy of each run over the epoch; waits for the device."""

    def bad(self) -> list[int]:
        """Of each run 0 where all losses of the epoch and all weights are finite, else more the earlier a loss is not:
        ``steps`` + 1 less its number from 0, or 1 for weights alone. Waits for the device.
        """

    def evaluate(self, split: str, after_each: Callable[[], None], *, averaged: bool = False) -> list[Evaluation]:
        """Of each run on its ``validation`` or the ``test`` images; ``after_each`` batch is called."""

    def predict(self) -> list[dict[str, Any]]:
        """Of each run, what ``predictions.npz`` has of the test images."""

    def save_to(self, place: int, state: Checkpoint) -> None:
        """Put what a run has learnt into its checkpoint."""

    def learner(self, place: int) -> Learner:
        """The network of a run by itself, to look into."""

    def more(self, place: int) -> dict[str, float]:
        """What else an epoch's row says of a run."""


class Eager:
    """One run, in one process or several."""

    name, count = "eager", 1

    def __init__(
        self,
        run: Run,
        device: torch.device,
        world: World,
        storage: str,
        splits: Splits,
        kept: Checkpoint | None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._world, self._splits, self._device = world, splits, device
        self._learner = Learner(run, device, world, storage)
        self.storage = self._learner.storage
        if kept:
            self._learner.load_from(kept)
        else:
            for note in start_from(self._learner.network, run.config.model):
                report(f"note: {note}")
        self._steps = Steps(run.config, splits.train, world)
        self._sums = Sums(len(self._steps), device)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self._steps)

    def is_the_same_alone(self) -> bool:
        """It is alone."""
        return True

    def epoch(self, epoch: int, first: int, sums: Sequence[Tensor | None]) -> Iterator[int]:
        """Step by step; the sums so far count for the first process."""
        self._learner.train()
        self._sums = Sums(self.steps, self._device, sums[0] if self._world.first else None)
        for step in self._steps.epoch(epoch, first):
            loss, logits = self._learner.step(step)
            self._sums.add(step.number, loss, logits, step.labels)
            yield step.number

    def sums_of(self, place: int) -> Tensor:
        """Over all processes; from here on the first counts for all."""
        del place
        total = self._world.total(self._sums.values.clone()).cpu()
        if self._world.size > 1:
            self._sums = Sums(self.steps, self._device, total if self._world.first else None)
        return total

    def means(self) -> list[tuple[float, float]]:
        """Over all processes."""
        return [self._sums.means(len(self._splits.train), self._world)]

    def bad(self) -> list[int]:
        """Over all processes."""
        first = self._sums.first_bad()
        mine = int(not self._learner.is_finite()) if first is None else self.steps - first + 1
        return [self._world.most(mine)]

    def evaluate(self, split: str, after_each: Callable[[], None], *, averaged: bool = False) -> list[Evaluation]:
        """Batch by batch."""
        return [evaluate(self._learner, getattr(self._splits, split), self._world, after_each, averaged=averaged)]

    def predict(self) -> list[dict[str, Any]]:
        """Batch by batch."""
        return [predict(self._learner, self._splits.test, self._world)]

    def save_to(self, place: int, state: Checkpoint) -> None:
        """As torch has it."""
        del place
        self._learner.save_to(state)

    def learner(self, place: int) -> Learner:
        """Itself."""
        del place
        return self._learner

    def more(self, place: int) -> dict[str, float]:
        """The density that beta-LASSO leaves."""
        del place
        return pruned(self._learner.optimizer)
