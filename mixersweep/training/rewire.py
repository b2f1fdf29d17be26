"""Dynamic sparse training: connections move while a network trains, and each layer keeps their number.

At the steps that ``schedule.rewired_share`` names, a share of the weights of each layer of masked weights goes, those
nearest to zero, and as many grow at absent positions, with weight and moments zero. What stays keeps its own. A
position whose weight has just gone is absent too: where it grows again, the weight stays as it was. Of ``optim.rewire``

- ``set`` (Mocanu et al. 2018, 1707.04780) grows at random, uniformly over the absent positions, before a step. Unlike
  there, the smallest weights are found by magnitude, not apart for either sign, and what grows begins at zero.
- ``rigl`` (Evci et al. 2020, 1911.11134, algorithm 1) grows where the absolute gradient of the step's loss is largest,
  in the place of the step's update. The share falls with half a cosine.
- ``srigl`` (Lasby et al. 2024, 2305.02299) is ``rigl`` with as many grown in each row as it has lost, so that every
  unit keeps the number of its inputs: a constant one with ``model.mask=fixed_fan_in``. The paper also ablates units
  with few large weights, which would change the width; that is left out.

All choices are functions of the weights, the gradients, and a seed for each layer and step. The gradient of an (out,
in) matrix is computed from the layer's inputs and the gradient of its outputs, some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixersweep.config import Config
from mixersweep.config.schema import Rewired
from mixersweep.layers import SparseWeights
from mixersweep.layers.masks import exact
from mixersweep.seeds import derive, seed_of
from mixersweep.training.parallel import World
from mixersweep.training.steps import Step

Kind = Literal["set", "rigl", "srigl"]

SLICE = 2**20
"""The most entries of a gradient that are computed at once, unless a single row has more."""

Gradient = Callable[[slice], Tensor]
"""The gradient (rows, in_width) of the loss by some rows of an effective matrix, at all positions."""


class Move(NamedTuple):
    """New ``positions`` (n,) of a layer's nonzeros, sorted flat indices; weights that stay come from ``places``.

    ``stays`` (n,) is False for those that have grown, whose ``places`` mean nothing.
    """

    positions: Tensor
    places: Tensor
    stays: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The values (n,) that belong to the moved weights, from those of the weights before; zero for new ones."""
        return values[self.places].where(self.stays, 0)


def move(weight: Tensor, positions: Tensor, share: float, grow: Callable[[Tensor, Tensor], Tensor]) -> Move:
    """Let the ``share`` of the smallest weights (n,) go, and ``grow`` as many.

    ``grow`` takes the ``positions`` (int64, sorted) that are kept and those that go, and returns as many as go, of
    those that are not kept.
    """
    goes = largest(-weight.abs().nan_to_num(nan=torch.inf, posinf=torch.inf)[None], round(share * weight.numel()))[0]
    moved = torch.cat([positions[~goes], grow(positions[~goes], positions[goes])]).sort().values
    places = torch.searchsorted(positions, moved).clamp(max=max(0, weight.numel() - 1))
    return Move(moved, places, positions[places] == moved)


def at_random(kept: Tensor, gone: Tensor, *, size: int, seed: int) -> Tensor:
    """Draw as many as have ``gone`` of the positions 0 to ``size`` - 1 that are not ``kept``, uniformly."""
    absent = exact(1, size - kept.numel(), gone.numel(), torch.Generator().manual_seed(seed)).to(kept.device)
    before = kept - torch.arange(kept.numel(), device=kept.device)  # the number of absent positions before each
    return absent + torch.searchsorted(before, absent, right=True)


def by_gradient(kept: Tensor, gone: Tensor, *, shape: tuple[int, int], gradient: Gradient) -> Tensor:
    """Find the positions with the largest gradients, as many as have ``gone``, of those that are not ``kept``."""
    scores, positions, count = torch.empty(0, device=kept.device), gone[:0], gone.numel()
    for more, first in scores_of_absent(kept, shape, gradient) if count else ():
        bound = scores.min() if scores.numel() == count else -1  # later ones of equal score come after it
        better = (more.flatten() > bound).nonzero().squeeze(1)
        scores, positions = torch.cat([scores, more.flatten()[better]]), torch.cat([positions, better + first])
        chosen = largest(scores[None], min(count, scores.numel()))[0]
        scores, positions = scores[chosen], positions[chosen]
    return positions


def by_gradient_in_rows(kept: Tensor, gone: Tensor, *, shape: tuple[int, int], gradient: Gradient) -> Tensor:
    """Find the positions with the largest gradients in each row, as many as have ``gone`` from it, not ``kept``."""
    rows, columns = shape
    lost, found = torch.bincount(gone // columns, minlength=rows), []
    for scores, first in scores_of_absent(kept, shape, gradient):
        row = first // columns
        chosen = largest(scores, lost[row : row + len(scores)])
        found.append(chosen.flatten().nonzero().squeeze(1) + first)
    return torch.cat(found)


def scores_of_absent(kept: Tensor, shape: tuple[int, int], gradient: Gradient) -> Iterator[tuple[Tensor, int]]:
    """Yield the absolute gradients (rows, columns) of some rows at a time, and the first position of each part.

    They are -1 at ``kept`` positions, and infinite where the gradient is not a number.
    """
    rows, columns = shape
    some = max(1, SLICE // columns)
    for row in range(0, rows, some):
        scores = gradient(slice(row, row + some)).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        first = row * columns
        bounds = torch.tensor([first, first + scores.numel()], device=kept.device)
        begin, end = torch.searchsorted(kept, bounds).tolist()
        scores.view(-1)[kept[begin:end] - first] = -1
        yield scores, first


def largest(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Find the ``counts``, (R,) or one for all, largest of each row of scores (R, n), of equal ones the first.

    Returns bool (R, n).
    """
    wanted = torch.as_tensor(counts, device=scores.device).expand(len(scores))[:, None]
    most = int(wanted.max())
    if not most:
        return torch.zeros_like(scores, dtype=torch.bool)
    bounds = scores.topk(most, dim=1).values.gather(1, (wanted - 1).clamp(min=0))
    above, equal = scores > bounds, scores == bounds
    return above | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted - above.sum(1, keepdim=True)))


class Rewiring:
    """The rewiring of a network's masked weights, with the numbers that belong to them."""

    def __init__(
        self,
        network: nn.Module,
        beside: Callable[[str], Iterable[Tensor]],
        kind: Kind,
        seed: int,
        world: World | None = None,
    ) -> None:
        """``seed`` is that of the run's structure; ``world`` has the processes between which a batch is divided.

        ``beside`` takes the name of a layer and returns the tensors that have a number for each of its weights, such as
        the optimiser's moments; others in the optimiser's state, of another shape, may be among them.
        """
        self.kind = kind
        self._layers = masked_layers(network)
        self._beside, self._seed, self._world = beside, seed, world or World()
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def during(self, step: Step) -> Iterator[None]:
        """The context in which the gradients of a step are computed; where it is due, rewires at random before it."""
        if step.rewired and self.kind == "set":
            self.rewire_at_random(step.index, step.rewired)
        with self.recording() if step.rewired and self.kind != "set" else nullcontext():
            yield

    def instead_of_update(self, step: Step) -> bool:
        """Rewire by the gradients of a step where that is due; returns whether it was."""
        if not step.rewired or self.kind == "set":
            return False
        self.rewire_by_gradients(step.rewired)
        return True

    def rewire_at_random(self, index: int, share: float) -> None:
        """Rewire a share of each layer's connections at random, before the step of this index in all of training."""
        for name, layer in self._layers.items():
            size, seed = layer.in_width * layer.out_width, derive(self._seed, "rewire", name, index)
            self._move(name, share, partial(at_random, size=size, seed=seed))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The context in which the gradients that connections are chosen by are computed."""
        self._seen = {name: [] for name in self._layers}
        handles = [
            layer.register_forward_hook(partial(self._see, self._seen[name]), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def rewire_by_gradients(self, share: float) -> None:
        """Rewire a share of each layer's connections by the gradients that were computed while ``recording``."""
        grow = by_gradient if self.kind == "rigl" else by_gradient_in_rows
        for name, layer in self._layers.items():
            shape = layer.out_width, layer.in_width
            self._move(name, share, partial(grow, shape=shape, gradient=self.gradient(name)))
        self._seen = {}

    def gradient(self, name: str) -> Gradient:
        """The gradient of the loss by the effective matrix of a layer, up to a factor, as recorded."""
        kind = self._layers[name].weight.dtype
        x_mb, of_y_mb = (torch.cat(parts, 1).to(kind) for parts in zip(*self._seen[name], strict=True))
        return lambda rows: self._world.sum(of_y_mb[rows] @ x_mb.t())

    @staticmethod
    def _see(seen: list[tuple[Tensor, Tensor]], layer: nn.Module, inputs: Any, how: dict[str, Any], y: Tensor) -> None:
        """Record the inputs (in_width, B) of a layer and, in the backward pass, the gradient of its outputs."""
        del layer
        x, first = inputs[0].detach(), how.get("features_first", False)

        def record(of_y: Tensor) -> None:
            seen.append((x, of_y) if first else (x.t(), of_y.t()))

        y.register_hook(record)

    @torch.no_grad()
    def _move(self, name: str, share: float, grow: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Move connections of a layer, with all that belongs to them; every tensor is written in place."""
        layer, weight = self._layers[name], self._layers[name].weight
        assert layer.positions is not None
        found = move(weight, layer.positions, share, grow)
        for values in (weight, *self._beside(name)):
            if values.shape == weight.shape:
                values.copy_(found.of(values))
        layer.move(found.positions)


def kind_of(config: Config) -> Kind | None:
    """How the settings let connections move, None where they stay."""
    if not isinstance(config.optim, Rewired) or config.optim.rewire == "none":
        return None
    return config.optim.rewire


def make_rewiring(
    config: Config,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
    world: World | None = None,
) -> Rewiring | None:
    """The rewiring that the settings ask for, None for static connections; ``average`` is the averaged network.

    It takes over the positions at its next update, like all that is no floating-point number.
    """
    kind = kind_of(config)
    if kind is None:
        return None
    layers, averaged = masked_layers(network), {} if average is None else masked_layers(average)

    def beside(name: str) -> Iterator[Tensor]:
        yield from (each for each in optimizer.state.get(layers[name].weight, {}).values() if isinstance(each, Tensor))
        if averaged:
            yield averaged[name].weight

    return Rewiring(network, beside, kind, seed_of(config, "structure"), world)


def masked_layers(network: nn.Module) -> dict[str, SparseWeights]:
    """The layers whose connections can move, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, SparseWeights)}
