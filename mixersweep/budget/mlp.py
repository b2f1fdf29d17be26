"""Solve for the shape of an MLP, sparse or dense: its own width, or that of the Mixer that it is compared with."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction

from mixersweep.budget.expansion import Expansion, expansion_from_shape, without_density
from mixersweep.budget.factored import fitted
from mixersweep.budget.mixer import mixer_shape
from mixersweep.budget.terms import DEFAULT_CONNECTIONS, Factored, Request, Shape, rounded_root, scaled
from mixersweep.errors import Infeasible, UserError


def mlp_shape(request: Request, expansion: Expansion | None) -> Shape:
    """Solve a request for an MLP.

    Raises ``UserError`` where its matrices cannot hold the connections, or a dense one cannot have the width.
    """
    if expansion is None:
        expansion = expansion_from_shape(request)
    factor = (expansion.token + expansion.channel) / 2
    free = all(getattr(request, name) is None for name in ("width", "tokens", "channels", "density"))
    if request.structure == "dense" and request.density not in (None, 1):
        raise UserError(f"density={request.density:g}: a dense mlp has density 1. Use density=auto, or model=sw_mlp")
    reference = _reference_mixer(request, expansion)
    if reference is not None:
        width, width_target = reference.width, reference.width_target
        copies = request.sharing if request.budget == "parameters" else 1  # a Mixer of so many weights, not connections
        target = (reference.target or round(reference.counted)) * copies
        of_rule, connections_target = reference.counted * copies, reference.connections_target
    else:
        request = without_density(request, expansion)
        target = connections_target = (request.flops if request.budget == "flops" else request.connections) or (
            DEFAULT_CONNECTIONS
        )
        of_rule = Fraction(target)
        width = width_target = request.width or _widest_sparse(request, target)
    if request.structure == "dense":
        width = width_target = _dense_width(request, factor, target)
        _check_dense_width(request, expansion, target, width)
    fitting = None
    if request.factored is not None:
        of_rule = Fraction(target)
        fitting = _fitting(request, request.factored, width, of_rule, free=free)
        width, width_target = fitting[0], fitting[0] if free else width_target
    if request.budget == "flops":
        connections = connections_target = _within_flops(request, width, of_rule)
    else:
        connections = round(of_rule)
        connections_target = connections_target if request.count == "formula" else connections
    if fitting is not None:
        connections = fitting[1]
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
        target=target,
        counted=of_rule,
    )


def _fitting(request: Request, kind: Factored, width: int, of_rule: Fraction, *, free: bool) -> tuple[int, int]:
    """Return the width and connections of layers that are products of factors, near to ``width`` or to their own."""

    def target(width: int) -> int:
        return _within_flops(request, width, of_rule) if request.budget == "flops" else round(of_rule)

    fixed = {"flops": "flops", "parameters": "weights"}.get(request.budget, "connections")
    own = kind.own_width(target(width)) if free else None
    return fitted(kind, own or width, target, free=free, budget=f"{fixed}={round(of_rule)}")


def _widest_sparse(request: Request, target: int) -> int:
    """Return the width at which the mean fan-in is 4, the default of a sparse MLP."""
    if request.budget != "flops":
        return target // 4
    return bisect_left(range(target), True, key=lambda m: m > 0 and _flops_left(request, m, target) < 4 * m) - 1


def _dense_width(request: Request, factor: Fraction, target: int) -> int:
    """Return the width whose dense matrices come nearest to the target; of two equally near, the narrower."""
    if request.budget != "flops":
        return max(1, rounded_root(target / factor, 2))

    def has(width: int) -> int:
        hidden = scaled(factor, width) if request.hidden else width
        return _fixed_flops(request, width) + 2 * _matrices(request) * width * hidden

    above = max(1, bisect_left(range(1, target + 2), target, key=has))
    return min((above, above + 1), key=lambda width: (abs(has(width) - target), width))


def _check_dense_width(request: Request, expansion: Expansion, target: int, one: int) -> None:
    """Raise ``Infeasible`` where another width is asked for than the ``one`` that a dense MLP has."""
    if request.width not in (None, one):
        fixed = "flops" if request.budget == "flops" else "connections"
        raise Infeasible(
            f"width={request.width}: a dense mlp with {fixed}={target} and {expansion} "
            f"has the one width {one}. Use width={one} or width=auto, or model=sw_mlp for a wider, sparser one",
            {"width": "auto"},
        )


def _within_flops(request: Request, width: int, flops: Fraction) -> int:
    """Return the connections of each matrix for which the FLOPs of an image come nearest to ``flops``.

    Raises ``Infeasible`` where stem and head alone take more.
    """
    connections = round(_flops_left(request, width, flops))
    if connections < 1:
        fixed = _fixed_flops(request, width)
        least = fixed + 2 * _matrices(request)
        alone = request.width is not None and request.match == "none"  # else the width follows from the FLOPs
        raise Infeasible(
            f"flops={round(flops)}: stem and head of an mlp of width={width} take {fixed} of them; "
            + (f"raise flops to {least} or more, or lower width" if alone else "raise flops, or set a smaller width"),
            {"flops": least} if alone else None,
        )
    return connections


def _flops_left(request: Request, width: int, flops: int | Fraction) -> Fraction:
    """Return the multiply-adds that stem and head leave for each matrix."""
    return Fraction(flops - _fixed_flops(request, width)) / (2 * _matrices(request))


def _fixed_flops(request: Request, width: int) -> int:
    """Return the FLOPs of stem and head for one image."""
    embedded = -(-width // request.patches)
    features = {"pool": embedded, "linear": width}.get(request.head, request.readout_dimension)
    return 2 * (request.patches * request.patch_values * embedded + features * request.classes)


def _matrices(request: Request) -> int:
    return request.layers_per_block * request.depth * (2 if request.hidden else 1)


def _least_width(connections: int, factor: Fraction) -> int:
    widths = range(1, connections + 1)
    return widths[bisect_left(widths, connections, key=lambda width: width * scaled(factor, width))]


def _reference_mixer(request: Request, expansion: Expansion) -> Shape | None:
    """Return the Mixer whose width and connections an MLP takes over, or None where it takes its own.

    It takes a Mixer's where tokens or channels are given (both with a density fix only the width), where neither width
    nor density is, and with ``match=mixer`` wherever a Mixer of the requested width exists.
    """
    if request.tokens is not None and request.channels is not None and request.density is not None:
        return None  # the MLP has the Mixer's width, but its own density
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
