"""Rewiring in a pack: one run after another, by the algorithm that a run has alone (``rewire``).

Connections move once in so many steps, so that their program needs no axis of runs. Each run is a network of its own,
whose parameters and buffers are views of the pack's. What moves keeps its shape and is written in place: a step that
was captured as a CUDA graph reads the new positions when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mixersweep.config import Config
from mixersweep.seeds import seed_of
from mixersweep.training.rewire import Kind, Rewiring
from mixersweep.training.schedule import rewired_share


class PackedRewiring:
    """The rewiring of R runs, all of one kind and at the same steps; the shares may differ."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        configs: Sequence[Config],
        kind: Kind,
        steps: int,
        tensors: Mapping[str, Tensor],
        beside: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """``steps`` is the number of steps in an epoch.

        ``tensors`` are the parameters and buffers of all runs by name, (R, ...), whose memory the networks come to
        share; ``beside`` has the moments, and the averages, of the parameters.
        """
        self.kind, self._networks, self._configs, self._steps = kind, networks, configs, steps
        self._tensors = tensors
        self._rewirings = []
        for run_index, (network, config) in enumerate(zip(networks, configs, strict=True)):
            _share_memory(network, {name: tensor[run_index] for name, tensor in tensors.items()})

            def of_layer(name: str, run_index: int = run_index) -> list[Tensor]:
                return [each[f"{name}.weight"][run_index] for each in beside]

            self._rewirings.append(Rewiring(network, of_layer, kind, seed_of(config, "structure")))

    def is_due(self, index: int) -> bool:
        """Whether connections move at step 0, 1, ... of training."""
        return self._share(0, index) > 0

    def rewire_at_random(self, index: int) -> None:
        """Rewire all runs at random, before this step; waits for the device."""
        for run_index, rewiring in enumerate(self._rewirings):
            rewiring.rewire_at_random(index, self._share(run_index, index))

    @contextmanager
    def by_gradients(self, run_index: int, index: int) -> Iterator[Callable[[Tensor], Tensor]]:
        """The context in which to compute the gradients of one run at this step, by the network that it yields.

        Rewires the run when it ends; waits for the device. The network computes with copies: how a library reads a
        tensor, and so its last digits, may depend on where it begins, which the other runs decide.
        """
        rewiring, network = self._rewirings[run_index], self._networks[run_index].train()
        copies = {name: tensor[run_index].clone() for name, tensor in self._tensors.items()}
        for name, _ in network.named_parameters():
            copies[name].requires_grad_()
        with rewiring.recording():
            yield partial(torch.func.functional_call, network, copies)
        rewiring.rewire_by_gradients(self._share(run_index, index))

    def _share(self, run_index: int, index: int) -> float:
        config = self._configs[run_index]
        return rewired_share(config.optim, index, self._steps, config.epochs)


def _share_memory(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the parameters and buffers of a network by tensors, by name."""
    for name, parameter in network.named_parameters():
        parameter.data = tensors[name]
    for name, _ in list(network.named_buffers()):
        module, _, buffer = name.rpartition(".")
        setattr(network.get_submodule(module), buffer, tensors[name])
