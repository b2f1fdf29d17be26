"""The parameters of a pack's networks in one tensor, so that an update is the same few operations whatever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class FlatParameters:
    """The parameters of R networks as one tensor, ``flat`` (R, P)."""

    def __init__(self, networks: Sequence[Mapping[str, Tensor]], device: torch.device) -> None:
        self._shapes = {name: parameter.shape for name, parameter in networks[0].items()}
        rows = [torch.cat([parameter.detach().flatten() for parameter in network.values()]) for network in networks]
        self.flat = torch.stack(rows).to(device)

    def leaves(self, part: slice) -> dict[str, Tensor]:
        """The parameters of some runs by name, (R, ...) each, as autograd leaves that share memory with ``flat``."""
        return {name: view.detach().requires_grad_() for name, view in self.views(self.flat[part]).items()}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the parameters in a tensor laid out like ``flat``, by name."""
        parts = flat.split([shape.numel() for shape in self._shapes.values()], 1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def of(self, run_index: int, flat: Tensor | None = None) -> dict[str, Tensor]:
        """A copy of one run's parameters, by name, on the CPU; from ``flat`` if given."""
        whole = (self.flat if flat is None else flat)[run_index, None].cpu()
        return {name: part[0].clone() for name, part in self.views(whole).items()}

    def put(self, run_index: int, values: Mapping[str, Tensor], flat: Tensor) -> None:
        """Set one run's parameters in ``flat``."""
        for name, part in self.views(flat).items():
            part[run_index] = values[name].to(part.device)
