"""Dynamic sparse training: connections move while a network trains, and each layer keeps their number.

At the steps that ``schedule.rewired_share`` names, a share of the weights of each layer of masked weights goes, those
nearest to zero, and as many grow at absent positions, with weight and moments zero. What stays keeps its own. A
position whose weight has just gone is absent too: where it grows again, the weight stays as it was. Of ``optim.rewire``

- ``set`` (Mocanu et al. 2018, 1707.04780) grows at random, uniformly over the absent positions, before a step. Unlike
  there, the smallest weights are found by magnitude, not apart for either sign, and what grows begins at zero.

All choices are functions of the weights and of a seed for each layer and step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixersweep.config import Config
from mixersweep.config.schema import Rewired
from mixersweep.layers import SparseWeights
from mixersweep.layers.masks import exact
from mixersweep.seeds import derive, seed_of
from mixersweep.training.steps import Step


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
    going = torch.tensor([round(share * weight.numel())], device=weight.device)
    goes = largest(-weight.abs().nan_to_num(nan=torch.inf)[None], going)[0]
    moved = torch.cat([positions[~goes], grow(positions[~goes], positions[goes])]).sort().values
    places = torch.searchsorted(positions, moved).clamp(max=max(0, weight.numel() - 1))
    return Move(moved, places, positions[places] == moved)


def at_random(kept: Tensor, gone: Tensor, *, size: int, seed: int) -> Tensor:
    """Draw as many as have ``gone`` of the positions 0 to ``size`` - 1 that are not ``kept``, uniformly."""
    absent = exact(1, size - kept.numel(), gone.numel(), torch.Generator().manual_seed(seed)).to(kept.device)
    before = kept - torch.arange(kept.numel(), device=kept.device)  # the number of absent positions before each
    return absent + torch.searchsorted(before, absent, right=True)


def largest(scores: Tensor, counts: Tensor) -> Tensor:
    """Find the ``counts`` (R,) largest of each row of scores (R, n), of equal ones the first: bool (R, n)."""
    most = int(counts.max())
    if not most:
        return torch.zeros_like(scores, dtype=torch.bool)
    bounds = scores.topk(most, dim=1).values.gather(1, (counts - 1).clamp(min=0)[:, None])
    above, equal = scores > bounds, scores == bounds
    return above | (equal & (equal.cumsum(1) <= counts[:, None] - above.sum(1, keepdim=True)))


class Rewiring:
    """The rewiring of a network's masked weights, with their optimiser's state and their moving average."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        kind: Literal["set"],
        seed: int,
    ) -> None:
        """``seed`` is that of the run's structure."""
        self._layers = masked_layers(network)
        self._averaged = {} if average is None else masked_layers(average)
        self._optimizer, self._kind, self._seed = optimizer, kind, seed

    @torch.no_grad()
    def before(self, step: Step) -> None:
        """Rewire at random where that is due, before a step."""
        if not step.rewired or self._kind != "set":
            return
        for name, layer in self._layers.items():
            size, seed = layer.in_width * layer.out_width, derive(self._seed, "rewire", name, step.index)
            self._move(name, step.rewired, partial(at_random, size=size, seed=seed))

    def _move(self, name: str, share: float, grow: Callable[[Tensor, Tensor], Tensor]) -> None:
        layer, weight = self._layers[name], self._layers[name].weight
        assert layer.positions is not None
        found = move(weight, layer.positions, share, grow)
        layers = [layer, *([self._averaged[name]] if self._averaged else [])]
        state = [each for each in self._optimizer.state.get(weight, {}).values() if isinstance(each, Tensor)]
        for values in (*(each.weight for each in layers), *state):
            if values.shape == weight.shape:
                values.copy_(found.of(values))
        for each in layers:
            each.move(found.positions)


def make_rewiring(
    config: Config, network: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> Rewiring | None:
    """The rewiring that the settings ask for, None for static connections; ``average`` is the averaged network."""
    if not isinstance(config.optim, Rewired) or config.optim.rewire == "none":
        return None
    return Rewiring(network, optimizer, average, config.optim.rewire, seed_of(config, "structure"))


def masked_layers(network: nn.Module) -> dict[str, SparseWeights]:
    """The layers whose connections can move, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, SparseWeights)}
