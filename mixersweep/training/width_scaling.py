"""Learning rates that depend on the width of each layer: ``optim.lr_scaling=none|fan_in|mup|mup_tied``.

A layer with the effective matrix M has

    fan_in  = connections / out_width    the mean nonzeros of a row of M, as in the initial weights
    fan_out = weights / fan_in           the rows of the matrix that is trained: its units, counted once where blocks
                                         share their weights

and for a vector (a bias, the gain or shift of a norm) fan_out is its length. With n = ``optim.base_fan_in``, the fan at
which ``optim.lr`` holds as it stands, the learning rate is ``optim.lr`` times

                       first layer's weights,    hidden layers'        head's     head's
                       all biases and norms      weights               weights    biases
    none               1                         1                     1          1
    fan_in             n/fan_in (vectors: 1)     n/fan_in              n/fan_in   1
    mup, SGD           fan_out/n                 fan_out/fan_in        n/fan_in   1
    mup, AdamW         1                         n/fan_in              n/fan_in   1
    mup_tied           as mup, for weights that blocks share times what is derived below

``mup`` is the maximal update parametrization: Yang & Hu, *Feature Learning in Infinite-Width Neural Networks*, 2021;
Yang et al., *Tensor Programs V*, 2022 (2203.03466), Table 3, with n for the constants that it leaves open, and for
SGD's hidden layers that are not square the ratio of the fans, as in the authors' package. ``fan_in`` is its rule for
hidden layers under Adam, for every matrix and optimiser: under SGD the standard parametrization's rate must fall so,
as 1/width, for its logits to stay finite (Yang & Hu 2021).

For masks, AdamW's ``mup`` is SμPar (Dey, Bergsma & Hestness, *Sparse maximal update parameterization*, 2024,
2405.15743, Table 1): hidden weights of variance 1/(m_d·m_ρ) and Adam's rate over m_d·m_ρ relative to the base network,
where m_d multiplies the width and m_ρ the density. fan_in is p·m, so that both are 1/fan_in here, and base and widened
network are one formula. The paper scales Adam alone and multiplies logits by 1/m_d where here the head's initial
weights and rate are smaller, which is the same under Adam.

A head of groups (``layers.readout``) reads its m units through D weights a class: m is its fan_in, of which each weight
reads m/D as one, by 1/sqrt(m/D). Its rate under ``fan_in`` is n/D, under SGD's ``mup`` n/m and under AdamW's
n/sqrt(m·D), which moves what it makes of a unit by n/m, as a dense head would.

Under ``mup`` and ``mup_tied`` the head starts from weights of variance n/fan_in² (``models.shrink_head``), all others
from 1/fan_in as ever: Table 3 again.

Weight decay is divided by the same factor: both optimisers multiply it by the rate, and what a step takes off a weight
stays as it was (the authors' package does so too).

Weights that blocks share
-------------------------

Let c blocks share a matrix W of o x i, so that m = c·o units stand behind the layer. With x_k the input of block k and
d_k the gradient of the loss by its output, a step of SGD at the rate r changes what block j makes of x_j by

    -r · sum over k of d_k (x_k · x_j).

A unit's d is of the order 1/m, from a head as above, and x_j · x_j = i for inputs of unit size. The block's own term is
then r·i/m. What the c - 1 others add depends on whether they push the same way:

- If the d_k (x_k · x_j) are alike in all blocks, the terms add up to r·i·c/m, which keeps its size at
  r = m/(c·i) = o/i. This is ``mup``: fan_out/fan_in, with each unit of W counted once.
- If the d_k have independent signs, as from a head whose weights are drawn at random, the terms add up in quadrature,
  to r·(i/m)·f with f = sqrt(1 + (c - 1)·q), where q is the mean of cos²(x_k, x_j) over pairs of blocks. This keeps its
  size at r = (o/i)·c/f. Adam divides by the size of the gradient's entries, c/m in the first case and sqrt(c)/m in the
  second: its rate 1/i becomes sqrt(c)/(i·f). So ``mup_tied`` multiplies SGD's rate by c/f and AdamW's by sqrt(c)/f.

q follows from the structure. Blocks that are the tokens or channels of one image are alike: q is a constant (measured
at the start of an S-Mixer: 0.17 to 0.38 at S = C = 8 to 64, without a trend), for which the rule takes its bound, 1.
SGD's factor is then sqrt(c), AdamW's 1. Blocks of units that a random permutation has gathered have no more in common
than random vectors: q = 1/i (measured at i = 64: 0.017 to 0.026). Then for c <= i the factors are c and sqrt(c), up to
sqrt(2): such a layer learns as an untied one does. A bias or norm has q = 1. With c = 1 all of this is ``mup``.

One more layer of a Mixer is special: the embedding of S0 patches, which do not grow, is read by S tokens, through W̃ or
the first token mixing. The gradient of one of its units is a sum of S terms of 1/m with weights of 1/sqrt(S0), so of
1/(C·sqrt(S·S0)), and not 1/C as ``mup`` has it. For SGD ``mup_tied`` multiplies its rate by sqrt(S/S0), 1 at S = S0.

Training begins in the second case and moves towards the first, as the head comes to follow the features: no power of c
is right throughout. The coordinate check (``analyze coordinates``) measures how far each is off. Exponents of m, of how
far the features of four mixing layers and the logits have moved after 1 and 16 steps of plain SGD at 0.1, S = C = 8 to
64, 8 seeds, with 0.05 to 0.08 for their 95% intervals after the first step:

                             features, 1     features, 16    logits, 1   logits, 16
    S-Mixer,    mup          -0.35 to -0.33  -0.18 to -0.14  -0.68       -0.47
                mup_tied     -0.09 to -0.05  +0.02 to +0.06  -0.44       -0.23
    RP-S-Mixer, mup          -0.40 to -0.36  -0.24 to -0.17  -0.70       -0.49
                mup_tied     -0.11 to -0.01  +0.03 to +0.09  -0.27       -0.07

What this is not:

- The papers' limit is that of dense layers whose fan-in grows. At a fixed number of connections the fan-in of an SW-MLP
  *falls* as it widens; that what matters is the number of summed inputs is carried over here, not proven, and at a
  fan-in of a few it has no law of large numbers behind it.
- ``mup_tied`` equalises how far features move, not what that does to the logits. The loss falls by r times the squared
  norm of the gradient, which for independent signs is that of an untied layer whatever q: where blocks are alike, what
  shared layers do to the logits in the first steps falls as 1/sqrt(c). A factor of c would keep it, and move features
  sqrt(c) times too far. No rate keeps both.
- The image's own sizes do not grow: the first token mixing, whose inputs are patches, counts as hidden, which differs
  from a first layer by a constant. Depth, batch size and the number of steps are not scaled at all, and
  ``optim.clip_norm`` bounds the gradients before any of this. Nor is the factor 1/sqrt(density) that
  ``model.rescale=forward`` puts before weights. The patches that share the embedding are not counted as copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from torch import nn

from mixersweep.config.schema import SGD, WidthScaled
from mixersweep.layers import SharesParameters, SparseMap
from mixersweep.models.mixer import TokenMap

Role = Literal["first", "hidden", "head"]
NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def parameters(network: nn.Module) -> Iterator[tuple[nn.Parameter, bool, nn.Module]]:
    """Yield every parameter, whether it is a weight that decays (not a bias, not a norm's), and its layer."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, name == "weight" and not isinstance(module, NORMS), module


def scales(network: nn.Module, settings: WidthScaled) -> dict[nn.Parameter, float]:
    """The factor by which ``optim.lr`` is multiplied, for every parameter."""
    maps = [module for module in network.modules() if isinstance(module, SparseMap)]
    roles: dict[nn.Module, Role] = {maps[0]: "first", maps[-1]: "head"}
    tied = tied_factors(network, sgd=isinstance(settings, SGD)) if settings.lr_scaling == "mup_tied" else {}
    return {
        parameter: _scale(settings, roles.get(layer, "hidden"), parameter, layer if weight else None)
        * tied.get(parameter, 1.0)
        for parameter, weight, layer in parameters(network)
    }


def tied_factors(network: nn.Module, *, sgd: bool) -> dict[nn.Parameter, float]:
    """The factor of ``mup_tied`` over ``mup``, for each parameter that several blocks, tokens or channels share."""
    modules = list(network.modules())
    found = {
        shared.parameter: tied_factor(shared.copies, shared.likeness, sgd=sgd)
        for module in modules
        if isinstance(module, SharesParameters)
        for shared in module.shared_parameters()
    }
    if sgd:  # the embedding of S0 patches, which S tokens read
        first = next(module for module in modules if isinstance(module, SparseMap))
        for wider in (module.map for module in modules if isinstance(module, TokenMap)):
            found |= dict.fromkeys(first.parameters(), math.sqrt(wider.out_width / wider.in_width))
    return found


def tied_factor(copies: int, likeness: float, *, sgd: bool) -> float:
    """The factor c/f (SGD) or sqrt(c)/f (Adam) for c copies whose inputs have a mean cos² of ``likeness``."""
    return (copies if sgd else math.sqrt(copies)) / math.sqrt(1 + (copies - 1) * likeness)


def _scale(settings: WidthScaled, role: Role, parameter: nn.Parameter, layer: nn.Module | None) -> float:
    """The factor of the learning rate of a weight of ``layer``, or of a bias or norm if ``layer`` is None."""
    n, sgd = settings.base_fan_in, isinstance(settings, SGD)
    rule = "mup" if settings.lr_scaling == "mup_tied" else settings.lr_scaling
    if rule == "none":
        return 1.0
    if layer is None:
        return parameter.numel() / n if rule == "mup" and sgd and role != "head" else 1.0
    assert isinstance(layer, SparseMap), layer
    fan_in = layer.connections / layer.out_width
    fan_out = layer.weights / fan_in
    if role == "head":
        read_as_one = fan_in * layer.out_width / layer.weights  # units, by a weight of a head of groups; else 1
        return n / fan_in * (read_as_one if rule == "fan_in" else 1.0 if sgd else math.sqrt(read_as_one))
    if rule == "fan_in":
        return n / fan_in
    if role == "first":
        return fan_out / n if sgd else 1.0
    return fan_out / fan_in if sgd else n / fan_in
