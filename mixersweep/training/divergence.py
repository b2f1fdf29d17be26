"""Where a training that is no longer finite went wrong: the first step, and the first layer in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mixersweep.data.batches import Batches
from mixersweep.errors import RunDiverged
from mixersweep.training.evaluation import batch_size
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.steps import Step


@dataclass(frozen=True)
class Offence:
    """The epoch and the number of a step, and what in it was not finite first."""

    step: tuple[int, int]
    what: str


def diverged(where: str, rate: float, what: str | None, rows: list[dict[str, Any]]) -> RunDiverged:
    """The end of a run in a step or in a metric, at a learning rate, after the rows of good epochs."""
    text = f"not finite in {where}, at learning rate {rate:.3g}" + (f": {what}" if what else "")
    if rows:
        good = f"train loss {rows[-1]['train_loss']:.4g}, test accuracy {rows[-1]['test_accuracy']:.4g}"
        text += f"; the last good epoch is {rows[-1]['epoch']} ({good})"
    return RunDiverged(text)


def find_offence(
    learner: Learner, steps: Iterator[Step], bad: tuple[int, int] | None, world: World, heed: Callable[[], None]
) -> Offence | None:
    """Train again, from a checkpoint's state, up to where it begins; None where this does not show it.

    ``bad`` is the epoch and step of the first loss that is not finite, None for none. ``heed`` is called before each
    step. All processes call this together.
    """
    for step in steps:
        heed()
        if (step.epoch, step.number) == bad:
            loss = partial(learner.loss, step)
            return _offence(step, first_bad_layer(learner.network, loss), world)
        learner.step(step)
        if not learner.is_finite():
            return _offence(step, _bad_update(learner.network), world)
    return None


def find_in_evaluation(learner: Learner, splits: Sequence[Batches], world: World) -> str | None:
    """What is not finite first where images are only evaluated; all processes call this together."""
    size, found = batch_size(learner.config), None
    for images in splits:
        for x, labels in images.batches(size, None, None, rank=world.rank, world_size=world.size):
            if found is None and len(labels):
                found = first_bad_layer(learner.network, partial(learner.loss_in_evaluation, x, labels))
    return next((words for words in world.all(found) if words), None)


def first_bad_layer(network: nn.Module, compute: Callable[[], Tensor]) -> str | None:
    """The name of the first layer that makes a loss not finite, and whether its weights or its output is to blame.

    ``compute`` runs the forward pass and returns the loss.
    """
    for name, parameter in network.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the parameter {name} is not finite"
    found: list[str] = []
    handles = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(f"the output of {name} is not finite")

        return hook

    for name, module in network.named_modules():
        if name and not any(module.children()):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        loss = compute()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    return None if bool(loss.detach().isfinite()) else "the loss itself is not finite"


def _offence(step: Step, what: str | None, world: World) -> Offence | None:
    """What one of the processes found: their shares of the batch differ."""
    found = next((words for words in world.all(what) if words), None)
    return None if found is None else Offence((step.epoch, step.number), found)


def _bad_update(network: nn.Module) -> str:
    """Of an update that left weights not finite: the gradient that was so first, which is the last layer's."""
    named = list(network.named_parameters())
    gradients = [name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
    if gradients:
        return f"the gradient of {gradients[-1]} is not finite"
    updates = [name for name, p in named if not bool(p.isfinite().all())]
    return f"the update of {updates[0]} is not finite" if updates else "gradients overflow at any scale of the loss"
