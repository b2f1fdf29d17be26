"""The number of features that a head reads, and checks for heads through which nothing can be trained."""

from __future__ import annotations

from mixersweep.budget.terms import DEFAULT_READOUT, Architecture, Request
from mixersweep.errors import Infeasible, UserError


def head_features(request: Request, width: int, embedding_channels: int) -> int:
    """Return the number of features that the head of a network of this width reads."""
    if request.head == "pool":
        return embedding_channels
    return width if request.head == "linear" else request.readout_dimension


def check_readout(request: Request, solved: Architecture) -> None:
    """Check that the head's input is not constant at initialisation, and that it has no more groups than units.

    Raises ``UserError`` with the setting that works.
    """
    dimension, width = request.readout_dimension, solved.width
    grouped = request.head in ("groups", "signed_groups")
    if not grouped and dimension != DEFAULT_READOUT:
        raise UserError(
            f"model.readout_dimension={dimension}: belongs to model.head=groups and signed_groups; "
            f"with model.head={request.head} leave it at {DEFAULT_READOUT}"
        )
    if solved.embedding_channels == 1 and solved.channels == 1:
        raise Infeasible(
            "channels=1: the norms make zero of a single channel, so that logits are constant whatever the head reads; "
            "the least is channels=2" + ("" if request.width is None else ", of a wider network"),
            {"channels": 2} if request.channels == 1 else None,
        )
    if grouped and width < dimension:
        raise Infeasible(
            f"model.readout_dimension={dimension}: more groups than the {width} units of width={width}; "
            f"use model.readout_dimension={width} or less, the same for all that is compared"
        )
    if request.head == "pool" and solved.tokens is None and solved.embedding_channels == 1:
        raise Infeasible(
            f"model.head=pool: all {width} units of width={width} are of one embedding channel, whose mean the norm "
            "before makes zero: logits are constant at the start, and no gradient reaches the network. Use "
            f"model.head=signed_groups model.readout_dimension={min(DEFAULT_READOUT, width)}, or a width above "
            f"{request.patches}"
        )
