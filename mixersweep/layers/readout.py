"""A head of equal dimension for every network: sum random groups of units, then map the groups to classes.

The usual heads (a mean over tokens, or all units) read a number of features that depends on the family and its width.
Here m units become D features whatever m is, by a random partition into D groups whose sizes differ by at most one:

    feature_d = (1 / sqrt(n_d)) sum of s_i x_i over the n_d units i of group d,      logits = W feature + b

with all s_i = 1, or with random signs, which is the count sketch of Charikar, Chen & Farach-Colton (2002). After a
norm, units have unit variance, and so has a feature whose units are uncorrelated. Groups and signs are drawn once and
stay fixed; each unit belongs to exactly one group, and only W (classes, D) and b are trained. Without signs, the sum
of all units is a fixed combination of the features, and a norm makes it zero at the start: D features then have rank
D - 1, in every family.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap
from mixersweep.layers.product import column, linear, product


class GroupReadout(SparseMap):
    """The map from m units through D groups to classes: an effective matrix (classes, m) of rank at most D."""

    order: Tensor
    group: Tensor
    signs: Tensor
    scale: Tensor

    def __init__(
        self, in_width: int, out_width: int, dimension: int, generator: torch.Generator, *, signed: bool
    ) -> None:
        super().__init__()
        assert in_width >= dimension, (in_width, dimension)
        self.in_width, self.out_width, self.dimension = in_width, out_width, dimension
        self.weight = nn.Parameter(torch.zeros(out_width, dimension))
        self.bias = nn.Parameter(torch.zeros(out_width))
        self.signed = signed
        order = torch.randperm(in_width, generator=generator, device="cpu")
        negative = torch.randint(2, (in_width,), generator=generator, device="cpu") * signed
        group = torch.empty_like(order)
        group[order] = torch.arange(in_width, device="cpu") % dimension
        sizes = torch.bincount(group, minlength=dimension)
        structure = {
            "order": order,  # the units by turns of the groups: unit order[i] is in group i mod D
            "group": group + dimension * negative,  # (m,) the group of each unit, plus D where its sign is negative
            "signs": 1.0 - 2 * negative[order, None],  # (m, 1) in that order
            "scale": sizes[:, None].float().rsqrt(),
        }
        for name, drawn in structure.items():  # not in the state dict: the seed redraws it
            self.register_buffer(name, drawn.to(self.weight.device), persistent=False)

    @property
    def connections(self) -> int:
        """The entries of the effective matrix: one from each unit to each class."""
        return self.in_width * self.out_width

    @property
    def weight_std(self) -> float:
        """The standard deviation that weights are initialised with: 1/sqrt(D), as for a dense map from the features."""
        return 1 / math.sqrt(self.dimension)

    def features(self, x_mb: Tensor) -> Tensor:
        """Return the features (D, B) of the units (m, B)."""
        signs = self.signs.to(x_mb.dtype) if self.signed else None
        sums: Tensor = _Sums.apply(x_mb, self.order, self.group, signs, self.dimension)
        return sums * self.scale

    def to_dense(self) -> Tensor:
        """Return the effective matrix (classes, m): the weights of a unit's group times the unit's sign and scale."""
        columns = self.weight * self.scale[:, 0]
        return torch.cat([columns, -columns], 1)[:, self.group]

    def dense_bias(self) -> Tensor:
        """Return the bias (classes,)."""
        assert self.bias is not None
        return self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Map (B, m) to logits (B, classes), or with ``features_first`` (m, B) to (classes, B)."""
        if features_first:
            return product(self.weight, self.features(x), column(self.bias))
        return linear(self.features(x.t()).t(), self.weight, self.bias)


class _Sums(torch.autograd.Function):
    """Sum each group of units, (m, B) to (D, B); the gradient is a gather, where autograd would scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, group: Tensor, signs: Tensor | None, dimension: int) -> Tensor:
        if x.is_cpu:  # adds one unit after another, those with negative signs to sums of their own
            sums = x.new_zeros(2 * dimension, x.shape[1]).index_add(0, group, x)
            return sums[:dimension] if signs is None else sums[:dimension] - sums[dimension:]
        ordered = x.index_select(0, order)  # on a GPU index_add is atomic, in no fixed order
        if signs is not None:
            ordered = ordered * signs
        rounds, rest = divmod(x.shape[0], dimension)
        whole = rounds * dimension
        sums = ordered[:whole].reshape(rounds, dimension, -1).sum(0)
        return sums + F.pad(ordered[whole:], (0, 0, 0, dimension - rest)) if rest else sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        _, _, group, ctx.signs, _ = inputs
        ctx.save_for_backward(group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (g,) = gradients
        (group,) = ctx.saved_tensors
        both = g if ctx.signs is None else torch.cat([g, -g])
        return both.index_select(0, group), None, None, None, None
