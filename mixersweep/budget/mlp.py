"""The shape of an MLP, sparse or dense: one width, or the width and connections of the Mixer it is compared with."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction

from mixersweep.budget.expansion import Expansion, expansion_from_shape, without_density
from mixersweep.budget.mixer import mixer_shape
from mixersweep.budget.terms import DEFAULT_CONNECTIONS, Request, Shape, rounded_root, scaled
from mixersweep.errors import Infeasible, UserError


def mlp_shape(request: Request, expansion: Expansion | None) -> Shape:
    """Solve a request for an MLP; raises ``UserError`` where its matrices cannot hold the connections."""
    if expansion is None:
        expansion = expansion_from_shape(request)
    factor = (expansion.token + expansion.channel) / 2
    if request.structure == "dense" and request.density not in (None, 1):
        raise UserError(f"density={request.density:g}: a dense mlp has density 1. Use density=auto, or model=sw_mlp")
    reference = _reference_mixer(request, expansion)
    if reference is not None:
        width, width_target = reference.width, reference.width_target
        connections, connections_target = round(reference.connections), reference.connections_target
    else:
        request = without_density(request, expansion)
        connections = connections_target = request.connections or DEFAULT_CONNECTIONS
        width = width_target = request.width or connections // 4  # the widest with a mean fan-in of 4
    if request.structure == "dense":
        one = max(1, rounded_root(connections_target / factor, 2))
        if request.width not in (None, one):
            raise Infeasible(
                f"width={request.width}: a dense mlp with connections={connections_target} and {expansion} "
                f"has the one width {one}. Use width={one} or width=auto, or model=sw_mlp for a wider, sparser one",
                {"width": "auto"},
            )
        width = width_target = one
    hidden_width = scaled(factor, width) if request.hidden else width
    if request.structure == "dense":
        connections = width * hidden_width
    elif connections > width * hidden_width:
        least = math.isqrt(connections - 1) + 1 if not request.hidden else _least_width(connections, factor)
        raise Infeasible(
            f"width={width}: connections={connections} do not fit into its {width}×{hidden_width} weights; "
            f"the narrowest that holds them: {least}",
            {"width": least},
        )
    return Shape(
        width=width,
        width_target=width_target,
        hidden_width=hidden_width,
        expansion=float(factor),
        connections=Fraction(connections),
        connections_target=connections_target,
    )


def _least_width(connections: int, factor: Fraction) -> int:
    widths = range(1, connections + 1)
    return widths[bisect_left(widths, connections, key=lambda width: width * scaled(factor, width))]


def _reference_mixer(request: Request, expansion: Expansion) -> Shape | None:
    """The Mixer whose width and connections an MLP takes over, or None where it stands on its own.

    It does where a Mixer's own sizes were given (both and a density fix its width alone), where neither width nor
    density was, and with ``match=mixer`` wherever a Mixer of the asked width exists.
    """
    if request.tokens is not None and request.channels is not None and request.density is not None:
        return None  # its width, but a density of its own
    if request.tokens is not None or request.channels is not None:
        return mixer_shape(request, expansion)
    if request.structure == "dense" or request.budget == "parameters":
        return None
    if request.width is None and request.density is None:
        return mixer_shape(request, expansion)
    if request.match == "none":
        return None
    try:
        return mixer_shape(request, expansion)
    except UserError:
        return None
