"""Access to the inside of a network, for analyses and probes: its mixing maps, and its residual branches' outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixersweep.layers import SparseMap
from mixersweep.models.parts import Block, Mixing

ENDS = ("embedding", "head", "stem", "resize")
"""The names of the parts before and after the mixing layers."""


def mixing_maps(network: nn.Module) -> dict[str, SparseMap]:
    """The linear maps of the mixing layers, by name.

    These are the maps on residual branches; in a network without such branches, all but those of stem and head.
    """
    found: dict[str, SparseMap] = {}
    for name, branch in _branches(network).items():
        for inner, layer in branch.named_modules(prefix=name):
            if isinstance(layer, SparseMap):
                found[inner] = layer
    if found:
        return found
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, SparseMap) and name.split(".")[0] not in ENDS
    }


def _branches(network: nn.Module) -> dict[str, nn.Sequential]:
    blocks = ((name, block) for name, block in network.named_modules() if isinstance(block, Block))
    return {f"{name}.{branch}": layers for name, block in blocks for branch, layers in block.residual()}


class Features:
    """A context that records the output of each residual branch, before it is added to the skip, as (B, features).

    Within it, ``of(images)`` runs the network and returns the outputs in the order of the names in ``layers``. For a
    network without residual branches they are the outputs of its mixing maps.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._hooked: dict[str, Any] = _branches(network) or mixing_maps(network)
        self.layers = list(self._hooked)
        self._kept: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Features:
        self._hooks = [module.register_forward_hook(self._keep(name)) for name, module in self._hooked.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            del inputs
            batch_first = output.transpose(0, 1) if isinstance(module, Mixing) else output
            self._kept[name] = batch_first.flatten(1)

        return hook

    @torch.no_grad()
    def of(self, images: Tensor) -> list[Tensor]:
        """Run the network on images (B, ch, H, W), and return the features of each layer, (B, features)."""
        self._kept = {}
        self.network(images)
        return list(self.kept().values())

    def kept(self) -> dict[str, Tensor]:
        """The features of the last forward pass, by layer, even if it was run outside ``of``."""
        return {name: self._kept[name] for name in self.layers}
