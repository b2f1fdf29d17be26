"""SGD and AdamW for R runs at once: torch's updates, with a learning rate and other settings for each run.

The parameters are one tensor (R, P), so an update is the same few operations whatever the network. The state is saved
in the format of torch's optimisers, so a run may stop in a pack and go on alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixersweep.config.schema import SGD, AdamW, AnyOptim
from mixersweep.layers import fused
from mixersweep.training.optimizer import make_optimizer


class PackedOptimizer(ABC):
    """An optimiser that updates ``flat`` (R, P) in place; ``state`` lists its own tensors, such as moments."""

    state: list[Tensor]
    moments: dict[str, Tensor]

    def __init__(self, networks: Sequence[nn.Module], settings: Sequence[AnyOptim], flat: Tensor) -> None:
        self.flat, self._settings, self._steps = flat, settings, [0] * len(settings)
        self._groups = [
            make_optimizer(network, each).state_dict()["param_groups"]
            for network, each in zip(networks, settings, strict=True)
        ]
        named = dict(networks[0].named_parameters())
        sizes = {name: parameter.numel() for name, parameter in named.items()}
        first = dict(zip(sizes, _offsets(sizes.values()), strict=True))
        name_of = {id(parameter): name for name, parameter in named.items()}
        scales, decays = torch.ones(flat.shape[1]), torch.zeros(flat.shape[1])
        decaying = make_optimizer(networks[0], replace(settings[0], weight_decay=1.0))
        self._parts: list[tuple[slice, torch.Size]] = []  # in the order of torch's state dicts
        for group in decaying.param_groups:
            for parameter in group["params"]:
                name = name_of[id(parameter)]
                part = slice(first[name], first[name] + sizes[name])
                self._parts.append((part, parameter.shape))
                scales[part], decays[part] = group["lr_scale"], group["weight_decay"]
        self._scales, self._decays = scales.to(flat.device), decays.to(flat.device)
        self._weight_decay = self._per_run("weight_decay")

    @abstractmethod
    def update(self, part: slice, gradients: Tensor, rates: Tensor, index: Tensor) -> None:
        """Update some runs once: gradients (R, P), rates (R,), ``index`` the number of updates before, int64 (1,)."""

    @abstractmethod
    def state_of(self, run_index: int, step: int) -> dict[str, Any]:
        """The state dict of one run after ``step`` updates, as torch's optimiser would have it."""

    @abstractmethod
    def load(self, run_index: int, state: dict[str, Any]) -> None:
        """Restore the state dict of one run."""

    def _per_run(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A setting for each run, (R,)."""
        values = [float(getattr(each, name)) for each in self._settings]
        return torch.tensor(values, dtype=dtype, device=self.flat.device)

    def _make_state(
        self, run_index: int, step: int, moments: dict[str, Tensor], more: dict[str, Tensor]
    ) -> dict[str, Any]:
        state = {}
        if step:
            of_run = {name: moment[run_index].cpu() for name, moment in moments.items()}
            for number, (part, shape) in enumerate(self._parts):
                own = {name: moment[part].view(shape).clone() for name, moment in of_run.items()}
                state[number] = {**{name: value.clone() for name, value in more.items()}, **own}
        return {"state": state, "param_groups": self._groups[run_index]}

    def _load_moments(self, run_index: int, state: dict[str, Any], moments: dict[str, Tensor]) -> None:
        for number, (part, _) in enumerate(self._parts):
            for name, moment in moments.items():
                value = state["state"].get(number, {}).get(name)
                if value is not None:
                    moment[run_index, part] = value.flatten().to(moment.device)


class PackedSGD(PackedOptimizer):
    """``torch.optim.SGD`` with momentum, Nesterov's or not, and weight decay."""

    def __init__(self, networks: Sequence[nn.Module], settings: Sequence[SGD], flat: Tensor) -> None:
        super().__init__(networks, settings, flat)
        self._momentum, self._nesterov = self._per_run("momentum"), settings[0].nesterov
        self.moments = {"momentum_buffer": torch.zeros_like(flat)}
        self.state = list(self.moments.values())

    def update(self, part: slice, gradients: Tensor, rates: Tensor, index: Tensor) -> None:
        """Update as ``torch.optim.SGD``: v <- momentum·v + g + decay·p, p <- p - rate·v (Nesterov: looking ahead)."""
        del index
        (buffer,) = (moment[part] for moment in self.state)
        flat, momentum, decay = self.flat[part], self._momentum[part], self._weight_decay[part]
        if fused.is_for(flat):
            factors = decay, self._decays, self._scales
            fused.sgd_(flat, gradients, buffer, rates, momentum, *factors, nesterov=self._nesterov)
            return
        momentum = momentum[:, None]
        steps = torch.addcmul(gradients, flat, decay[:, None] * self._decays)
        buffer.mul_(momentum).add_(steps)
        ahead = torch.addcmul(steps, buffer, momentum) if self._nesterov else buffer
        flat.sub_(ahead * (rates[:, None] * self._scales))

    def state_of(self, run_index: int, step: int) -> dict[str, Any]:
        """The state dict of one run: its momentum buffers, none without momentum."""
        has_momentum = float(self._settings[run_index].momentum) > 0  # type: ignore[union-attr]
        return self._make_state(run_index, step, self.moments if has_momentum else {}, {})

    def load(self, run_index: int, state: dict[str, Any]) -> None:
        """Restore the momentum buffers of one run."""
        self._load_moments(run_index, state, self.moments)


class PackedAdamW(PackedOptimizer):
    """``torch.optim.AdamW`` (Loshchilov & Hutter 2019, 1711.05101)."""

    def __init__(self, networks: Sequence[nn.Module], settings: Sequence[AdamW], flat: Tensor) -> None:
        super().__init__(networks, settings, flat)
        self._beta1, self._beta2 = (self._per_run(name, torch.float64) for name in ("beta1", "beta2"))
        self._eps = self._per_run("eps")
        self.moments = {"exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
        self.state = list(self.moments.values())

    def update(self, part: slice, gradients: Tensor, rates: Tensor, index: Tensor) -> None:
        """Update as ``torch.optim.AdamW``: decoupled weight decay, then Adam's step with bias-corrected moments."""
        first, second = (moment[part] for moment in self.state)
        each = (self._beta1, self._beta2, self._eps, self._weight_decay)
        flat, (beta1, beta2, eps, decay) = self.flat[part], (values[part][:, None] for values in each)
        rate = rates[:, None] * self._scales
        flat.mul_(1 - rate * (decay * self._decays))
        first.lerp_(gradients, (1 - beta1).float())
        second.mul_(beta2.float()).addcmul_(gradients * gradients, (1 - beta2).float())
        whole1, whole2 = (1 - beta ** (index + 1) for beta in (beta1, beta2))
        roots = second.sqrt() / whole2.sqrt().float() + eps
        flat.sub_(rate / whole1.float() * first / roots)

    def state_of(self, run_index: int, step: int) -> dict[str, Any]:
        """The state dict of one run: both moments and the step count, which torch stores for each parameter."""
        return self._make_state(run_index, step, self.moments, {"step": torch.tensor(float(step))})

    def load(self, run_index: int, state: dict[str, Any]) -> None:
        """Restore both moments of one run."""
        self._load_moments(run_index, state, self.moments)


def make_packed(networks: Sequence[nn.Module], settings: Sequence[Any], flat: Tensor) -> PackedOptimizer:
    """The optimiser of a pack, whose runs all use SGD or all use AdamW."""
    kind = PackedSGD if isinstance(settings[0], SGD) else PackedAdamW
    made: PackedOptimizer = kind(networks, settings, flat)
    return made


def _offsets(sizes: Any) -> list[int]:
    """The offset at which each part begins, given their sizes."""
    first, starts = 0, []
    for size in sizes:
        starts.append(first)
        first += size
    return starts
