"""An exponential moving average (EMA) of the weights, evaluated beside the network itself."""

from __future__ import annotations

from timm.utils.model_ema import ModelEmaV3
from torch import nn


class Average(ModelEmaV3):
    """An exponential moving average of a network's weights; ``module`` is the averaged network, in eval mode.

    After each step, average <- d · average + (1 - d) · network with d = min(decay, (1 + step) / (10 + step)), as in
    TensorFlow's ``ExponentialMovingAverage``: the small early d lets the average forget the initial weights. The
    running mean and variance of BatchNorm are averaged like weights, so they need no pass over the data; its count of
    batches is copied.

    Masks and permutations are shared with the network; where connections move (``rewire``), the average moves along. An
    update is a few kernels for all tensors and never waits for the device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, decay=decay)
        self.module.requires_grad_(False)
        stored = set(network.state_dict())
        for (prefix, theirs), ours in zip(network.named_modules(), self.module.modules(), strict=True):
            for name, buffer in theirs.named_buffers(recurse=False):
                if f"{prefix}.{name}".removeprefix(".") not in stored:
                    setattr(ours, name, buffer)

    def get_decay(self, step: int | None = None) -> float:
        """The decay after step 0, 1, ...; the final one for None."""
        return self.decay if step is None else min(self.decay, (1 + step) / (10 + step))
