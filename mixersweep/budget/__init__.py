"""The budget rule: from a fixed number of connections to the sizes of a network.

It is integer and rational arithmetic on *structures* (how the effective weight matrix is sparse), and imports nothing
else of mixersweep but its errors. With S tokens, C channels and expansion factors g_t, g_c, a Mixer has effective width
m = S·C and, per effective weight matrix,

    Omega = C·S·(h_t + h_c) / 2        h_t = max(1, round(g_t·S)),  h_c = max(1, round(g_c·C))

connections (Hayase & Karakida 2024, section 4.1, eqs 13-15; a single-layer Mixer has h_t = S, h_c = C). Its width is at
most (Omega / g)^(2/3), reached at S = C. A sparse-weight MLP has Omega nonzeros in each of its matrices and any width
from sqrt(Omega / g) on; a dense MLP can only have the width sqrt(Omega / g). Networks whose layers have unequal sizes
follow another rule (``layered``, ``solve_layered``).

``budget=parameters`` fixes the trainable weights instead, as Golubeva et al. (2021) do. A Mixer has (S·h_t + C·h_c) / 2
weights per matrix, because its blocks share them, so that Pi weights allow a width of at most Pi / g; in other
structures the weights are the connections. ``budget=flops`` fixes the FLOPs of an image, and ``count=real`` counts the
layers as they are built instead of the formula's square ones (``rules``).

``solve`` turns a ``Request`` into an ``Architecture`` or raises a ``UserError`` that says what would fit.
"""

from __future__ import annotations

import dataclasses
import math

from mixersweep.budget.counts import count, mixer_matrices, mlp_matrices
from mixersweep.budget.expansion import expansion_of
from mixersweep.budget.factored import BTT, Blocks, Butterfly, LowRank
from mixersweep.budget.layered import Layer, Layered, solve_layered
from mixersweep.budget.mixer import mixer_shape, widest, with_sizes
from mixersweep.budget.mlp import mlp_shape
from mixersweep.budget.readout import check_readout
from mixersweep.budget.terms import (
    DEFAULT_CONNECTIONS,
    DEFAULT_READOUT,
    TOLERANCE,
    Architecture,
    Factored,
    Head,
    Request,
    Structure,
)
from mixersweep.errors import UserError

__all__ = [
    "BTT",
    "DEFAULT_CONNECTIONS",
    "DEFAULT_READOUT",
    "TOLERANCE",
    "Architecture",
    "Blocks",
    "Butterfly",
    "Factored",
    "Head",
    "Layer",
    "Layered",
    "LowRank",
    "Request",
    "Structure",
    "check_readout",
    "solve",
    "solve_layered",
    "warnings",
    "widest",
]


def solve(request: Request) -> Architecture:
    """Solve a request: return the sizes and counts of its network.

    Raises ``UserError`` for a contradictory or insufficient request, and for one that no integer sizes meet within 2%;
    the message names the settings and the nearest ones that work.
    """
    request = _with_one_budget(request)
    expansion = expansion_of(request)
    if request.shares:
        request = with_sizes(request, expansion)
    if request.structure in ("kronecker", "block_diagonal"):
        shape = mixer_shape(request, expansion)
        embedded = 0 if request.stem == "none" else shape.channels
        return count(request, shape, mixer_matrices(request, shape), embedded)
    shape = mlp_shape(request, expansion)
    embedding_channels = -(-shape.width // request.patches)
    return count(request, shape, mlp_matrices(request, shape), embedding_channels)


def _with_one_budget(request: Request) -> Request:
    """Check that the request gives only the quantity that its budget fixes; return it with weights as connections.

    Where blocks share their weights, weights are not connections, and the request is returned as it is.
    """
    own = {"connections": "connections", "parameters": "weights", "flops": "flops"}[request.budget]
    fixes = {"weights": "the trainable weights of a mixing layer", "flops": "the FLOPs of an image"}
    budgets = {"weights": "parameters", "flops": "flops"}
    for name in fixes:
        value = getattr(request, name)
        if name != own and value is not None:
            raise UserError(
                f"{name}={value}: budget={request.budget} fixes the {own}; "
                f"set budget={budgets[name]} to fix {fixes[name]}"
            )
    if own == "connections":
        return request
    if getattr(request, own) is None:
        mean = "the mean trainable weights of a mixing layer" if own == "weights" else fixes[own]
        raise UserError(f"budget={request.budget}: needs {own}=..., {mean}")
    for name in ("connections", "density"):
        value = getattr(request, name)
        if value is not None:
            raise UserError(
                f"{name}={value:g}: budget={request.budget} fixes the {own}, and {name} follows; leave it out"
            )
    if own == "flops" or request.structure == "kronecker":
        return request
    if request.structure == "block_diagonal" and request.count == "real":  # its skip shares weights
        return request
    return dataclasses.replace(request, connections=(request.weights or 0) * request.sharing)


def warnings(
    architecture: Architecture,
    structure: Structure,
    classes: int,
    *,
    pooled: bool = True,
    share_without_input: float | None = None,
) -> list[str]:
    """Return the caveats about this network's accuracy that a reader must know, one sentence each.

    ``pooled`` says that the head averages over tokens or patches. ``share_without_input`` is the share of units that
    no connection reaches; by default that of uniformly random masks.
    """
    found = []
    if pooled and architecture.embedding_channels < classes:
        name = "channels" if architecture.channels is not None else "embedding channels"
        found.append(
            f"{name}={architecture.embedding_channels} is below the {classes} classes: "
            "the pooled head is rank-limited, so a loss here is not one of width"
        )
    if structure == "sparse" and architecture.mean_fan_in < 4:
        inputs = architecture.mean_fan_in / max(architecture.density, 1e-300)
        fraction = share_without_input
        if fraction is None:
            fraction = math.exp(inputs * math.log1p(-min(architecture.density, 1 - 1e-12)))
        found.append(
            f"mean fan-in {architecture.mean_fan_in:.3g} is below 4: about {fraction:.1%} of the units have no input"
        )
    return found
