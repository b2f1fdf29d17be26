"""The engines that compute training: ``Eager`` trains one run, ``packed.Packed`` several runs as one program.

The training loop (``loop``) uses an engine only to train an epoch, evaluate, and save what was learnt. An engine's runs
are numbered 0 to ``count`` - 1: their ``run_index``.
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
"""Mean loss and accuracy of a run; both None if there are no images."""


class Engine(Protocol):
    """The interface of an engine, which trains ``count`` runs together; ``storage`` is that of their sparse weights."""

    name: str
    count: int
    storage: str

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""

    def is_the_same_alone(self) -> bool:
        """Whether each run computes bit for bit what it would compute without the others."""

    def epoch(self, epoch: int, first: int, sums: Sequence[Tensor | None]) -> Iterator[int]:
        """Train an epoch from step ``first`` on, and yield the number of each step once it is launched.

        ``sums`` are, for each run, the summed loss and correct predictions of the steps before ``first``, float64
        (2, steps), or None.
        """

    def sums_of(self, run_index: int) -> Tensor:
        """The summed loss and correct predictions of each step of the epoch so far, float64 (2, steps), on the CPU."""

    def means(self) -> list[tuple[float, float]]:
        """The mean training loss and accuracy of each run over the epoch; waits for the device."""

    def nonfinite_codes(self) -> list[int]:
        """A code for each run: 0 if all losses of the epoch and all weights are finite; waits for the device.

        Otherwise ``steps`` + 1 minus the number (from 0) of the first step whose loss is not finite, or 1 if only
        weights are not.
        """

    def evaluate(self, split: str, after_each: Callable[[], None], *, averaged: bool = False) -> list[Evaluation]:
        """Evaluate each run on its ``validation`` or the ``test`` images; ``after_each`` is called after each batch."""

    def predict(self) -> list[dict[str, Any]]:
        """The arrays of ``predictions.npz`` for each run, from the test images."""

    def save_to(self, run_index: int, state: Checkpoint) -> None:
        """Put the weights and the optimiser's state of a run into its checkpoint."""

    def learner(self, run_index: int) -> Learner:
        """A learner with the present weights of one run, to inspect its network."""

    def extra_metrics(self, run_index: int) -> dict[str, float]:
        """Further metrics of a run for the epoch's row."""


class Eager:
    """The engine that trains one run operation by operation, in one process or several."""

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
        """The number of steps in an epoch."""
        return len(self._steps)

    def is_the_same_alone(self) -> bool:
        """True: there is only one run."""
        return True

    def epoch(self, epoch: int, first: int, sums: Sequence[Tensor | None]) -> Iterator[int]:
        """Train an epoch from step ``first`` on; the first process takes over the sums of the steps before."""
        self._learner.train()
        self._sums = Sums(self.steps, self._device, sums[0] if self._world.is_first else None)
        for step in self._steps.epoch(epoch, first):
            loss, logits = self._learner.step(step)
            self._sums.add(step.number, loss, logits, step.labels)
            yield step.number

    def sums_of(self, run_index: int) -> Tensor:
        """The sums over all processes; afterwards the first process holds them all."""
        del run_index
        total = self._world.sum(self._sums.values.clone()).cpu()
        if self._world.size > 1:
            self._sums = Sums(self.steps, self._device, total if self._world.is_first else None)
        return total

    def means(self) -> list[tuple[float, float]]:
        """The mean training loss and accuracy over all processes."""
        return [self._sums.means(len(self._splits.train), self._world)]

    def nonfinite_codes(self) -> list[int]:
        """The code of ``Engine.nonfinite_codes``: the largest, hence earliest, of all processes."""
        first = self._sums.first_nonfinite()
        mine = int(not self._learner.is_finite()) if first is None else self.steps - first + 1
        return [self._world.max(mine)]

    def evaluate(self, split: str, after_each: Callable[[], None], *, averaged: bool = False) -> list[Evaluation]:
        """The mean loss and accuracy on the ``validation`` or ``test`` images."""
        return [evaluate(self._learner, getattr(self._splits, split), self._world, after_each, averaged=averaged)]

    def predict(self) -> list[dict[str, Any]]:
        """The predictions for the test images."""
        return [predict(self._learner, self._splits.test, self._world)]

    def save_to(self, run_index: int, state: Checkpoint) -> None:
        """Put torch's own state dicts into the checkpoint."""
        del run_index
        self._learner.save_to(state)

    def learner(self, run_index: int) -> Learner:
        """The learner that trains, not a copy."""
        del run_index
        return self._learner

    def extra_metrics(self, run_index: int) -> dict[str, float]:
        """The density of the weights under beta-LASSO; nothing for other optimisers."""
        del run_index
        return pruned(self._learner.optimizer)
