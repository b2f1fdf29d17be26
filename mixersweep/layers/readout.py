"""A readout of one dimension for every network: groups of units, summed, then a dense map from the groups to classes.

Families end in features of different sizes and layouts, and a head that follows them (a mean over tokens, or all units)
reads a number of features that depends on the family and its width. Here m units become D features whatever m is: a
random partition of the units into D groups whose sizes differ by at most one, and

    feature_d = (1 / sqrt(n_d)) sum of s_i x_i over the n_d units i of group d,      logits = W feature + b

with all s_i = 1, or with random signs: then it is the count sketch of Charikar, Chen & Farach-Colton (2002). Behind a
norm, units have unit variance, and so has a feature where the units of its group are uncorrelated. Groups and signs
are drawn once and static; each unit has exactly one way to the head, and only W (classes x D) and b are trained. Sums
without signs keep what a norm makes of all units together: their sum is zero at the start, so that D features have
rank D - 1, in every family.
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
    """The map from m units to classes through D groups of them: an effective matrix (classes, m) of rank at most D."""

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
            "order": order,  # of the units: at place i is one of group i mod D
            "group": group + dimension * negative,  # of each unit, and D more where its sign is a minus
            "signs": 1.0 - 2 * negative[order, None],  # in that order
            "scale": sizes[:, None].float().rsqrt(),
        }
        for name, drawn in structure.items():  # drawn anew from its seed, never stored: not part of the state dict
            self.register_buffer(name, drawn.to(self.weight.device), persistent=False)

    @property
    def connections(self) -> int:
        """One from each unit to each class."""
        return self.in_width * self.out_width

    @property
    def weight_std(self) -> float:
        """1/sqrt(D): that of a dense map from the features."""
        return 1 / math.sqrt(self.dimension)

    def features(self, x_mb: Tensor) -> Tensor:
        """What the trained weights read: (m, B) to (D, B)."""
        signs = self.signs.to(x_mb.dtype) if self.signed else None
        sums: Tensor = _Sums.apply(x_mb, self.order, self.group, signs, self.dimension)
        return sums * self.scale

    def to_dense(self) -> Tensor:
        """The weight of a unit's group, by its sign and scale."""
        columns = self.weight * self.scale[:, 0]
        return torch.cat([columns, -columns], 1)[:, self.group]

    def dense_bias(self) -> Tensor:
        """The bias."""
        assert self.bias is not None
        return self.bias

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(B, m) to (B, classes), or (m, B) to (classes, B)."""
        if features_first:
            return product(self.weight, self.features(x), column(self.bias))
        return linear(self.features(x.t()).t(), self.weight, self.bias)


class _Sums(torch.autograd.Function):
    """The sum of each group, (m, B) to (D, B), and for the gradient a gather: autograd's own would scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, group: Tensor, signs: Tensor | None, dimension: int) -> Tensor:
        if x.is_cpu:  # one unit after the other into the sums of either sign
            sums = x.new_zeros(2 * dimension, x.shape[1]).index_add(0, group, x)
            return sums[:dimension] if signs is None else sums[:dimension] - sums[dimension:]
        ordered = x.index_select(0, order)  # a GPU would add atomically, in any order
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
