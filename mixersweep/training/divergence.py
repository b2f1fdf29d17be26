"""Find where training diverged: the first step that is not finite, and the first such layer in it."""

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
class Divergence:
    """The step (its epoch and its number) where training diverged, and what was not finite first."""

    step: tuple[int, int]
    what: str


def divergence_error(where: str, rate: float, what: str | None, rows: list[dict[str, Any]]) -> RunDiverged:
    """The error that ends a diverged run.

    ``where`` is the step or metric, ``rate`` its learning rate, ``what`` the first thing that was not finite, and
    ``rows`` the metrics of the finite epochs before.
    """
    text = f"not finite in {where}, at learning rate {rate:.3g}" + (f": {what}" if what else "")
    if rows:
        good = f"train loss {rows[-1]['train_loss']:.4g}, test accuracy {rows[-1]['test_accuracy']:.4g}"
        text += f"; the last good epoch is {rows[-1]['epoch']} ({good})"
    return RunDiverged(text)


def find_divergence(
    learner: Learner,
    steps: Iterator[Step],
    diverged_at: tuple[int, int] | None,
    world: World,
    check_signals: Callable[[], None],
) -> Divergence | None:
    """Train the steps again from a checkpoint up to the first that is not finite; None if all stay finite.

    ``diverged_at`` is the epoch and step of the first loss that was not finite, None if only weights were.
    ``check_signals`` is called before each step and may raise to stop. A collective call: all processes take part.
    """
    for step in steps:
        check_signals()
        if (step.epoch, step.number) == diverged_at:
            loss = partial(learner.loss, step)
            return _first_divergence(step, first_nonfinite_layer(learner.network, loss), world)
        learner.step(step)
        if not learner.is_finite():
            return _first_divergence(step, _name_nonfinite_update(learner.network), world)
    return None


def find_in_evaluation(learner: Learner, splits: Sequence[Batches], world: World) -> str | None:
    """Find the first layer that is not finite in evaluation, None if none is; a collective call."""
    size, found = batch_size(learner.config), None
    for images in splits:
        for x, labels in images.batches(size, None, None, rank=world.rank, world_size=world.size):
            if found is None and len(labels):
                found = first_nonfinite_layer(learner.network, partial(learner.loss_in_evaluation, x, labels))
    return next((words for words in world.gather(found) if words), None)


def first_nonfinite_layer(network: nn.Module, compute: Callable[[], Tensor]) -> str | None:
    """Name the first parameter, or else the first layer's output, that is not finite; None if the loss is finite.

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


def _first_divergence(step: Step, what: str | None, world: World) -> Divergence | None:
    """The finding of the first process that has one: each has seen another part of the batch."""
    found = next((words for words in world.gather(what) if words), None)
    return None if found is None else Divergence((step.epoch, step.number), found)


def _name_nonfinite_update(network: nn.Module) -> str:
    """Name what made an update not finite: the gradient of the last such layer, as backward passes begin there."""
    named = list(network.named_parameters())
    gradients = [name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
    if gradients:
        return f"the gradient of {gradients[-1]} is not finite"
    updates = [name for name, p in named if not bool(p.isfinite().all())]
    return f"the update of {updates[0]} is not finite" if updates else "gradients overflow at any scale of the loss"
