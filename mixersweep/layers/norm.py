"""LayerNorm for the features-last and the features-first layouts (``mixersweep.layers``)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.layers import fused
from mixersweep.layers.pack import for_all_runs, is_packed


class RowNorm(nn.LayerNorm):
    """``nn.LayerNorm(width)`` over the last axis: (..., width) to the same shape."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis, then scale and shift each feature."""
        if is_packed():
            return for_all_runs(_row_norm_of_runs, x, self.weight, self.bias, self.eps)
        return super().forward(x)


def _row_norm_of_runs(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise x (R, ..., width) of R runs, with the weights and biases (R, width) of each."""
    if fused.is_for(x):
        return fused.layer_norm(x.flatten(1, -2), weight, bias, eps, weight.dtype).view(x.shape)
    between = (1,) * (x.dim() - 2)
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(bias.unflatten(1, (*between, -1)), normed, weight.unflatten(1, (*between, -1)))


class ColumnNorm(nn.LayerNorm):
    """``nn.LayerNorm(width)`` over the first axis: (width, B) to the same shape."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x_mb: Tensor) -> Tensor:
        """Normalise each column, then scale and shift each feature, which is a row."""
        if is_packed():
            return for_all_runs(_column_norm_of_runs, x_mb, self.weight, self.bias, self.eps)
        with torch.autocast(x_mb.device.type, enabled=False):  # in fp32, as torch's LayerNorm is under autocast
            y_mb: Tensor = _ColumnNorm.apply(x_mb.to(self.weight.dtype), self.weight, self.bias, self.eps)
        return y_mb


class _ColumnNorm(torch.autograd.Function):
    """LayerNorm of columns by torch's BatchNorm kernel, to which a column is one channel of ``width`` examples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, _, inverse_std = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(normed, inverse_std, weight)
        return (normed * weight[:, None]).add_(bias[:, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        (g,) = gradients
        normed, inverse_std, weight = ctx.saved_tensors
        width = normed.shape[0]
        product = g * normed
        of_weight, of_bias = product.sum(1), g.sum(1)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, None
        along = weight @ product / width
        of_x = (g * weight[:, None]).sub_(weight @ g / width).sub_(normed * along).mul_(inverse_std)
        return of_x, of_weight, of_bias, None


def _column_norm_of_runs(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise x (R, width, B) of R runs, with the weights and biases (R, width) of each."""
    if fused.is_for(x):
        return fused.column_norm(x, weight, bias, eps, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(weight.dtype)
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return torch.addcmul(bias[..., None], (x - mean) * (variance + eps).rsqrt(), weight[..., None])
