"""Expansion factors, the hidden size over the size in two-layer blocks, and sizes from a density."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import NamedTuple

from mixersweep.budget.terms import DEFAULT_CONNECTIONS, TOLERANCE, Request, exact, relative, rounded_root, scaled
from mixersweep.errors import UserError


class Expansion(NamedTuple):
    """The exact expansion factors of token and channel mixing, and whether blocks have a hidden layer at all."""

    token: Fraction
    channel: Fraction
    hidden: bool

    def sizes(self, tokens: int, channels: int) -> tuple[int, int]:
        """Return the hidden sizes (h_t, h_c), rounded; without a hidden layer (tokens, channels)."""
        if not self.hidden:
            return tokens, channels
        return scaled(self.token, tokens), scaled(self.channel, channels)

    def unrounded(self, tokens: float, channels: float) -> tuple[float, float]:
        """Return ``sizes`` without rounding, for real-valued tokens and channels."""
        return (float(self.token) * tokens, float(self.channel) * channels) if self.hidden else (tokens, channels)

    def twice_connections(self, tokens: int, channels: int) -> int:
        """Return 2·Omega, which is always an integer (Omega itself may be half an integer)."""
        token_hidden, channel_hidden = self.sizes(tokens, channels)
        return tokens * channels * (token_hidden + channel_hidden)

    def twice_weights(self, tokens: int, channels: int) -> int:
        """Return twice the mean trainable weights of a matrix whose blocks share them, S·h_t + C·h_c."""
        token_hidden, channel_hidden = self.sizes(tokens, channels)
        return tokens * token_hidden + channels * channel_hidden

    def __str__(self) -> str:
        if self.token == self.channel:
            return f"expansion={float(self.token):g}"
        return f"expansions {float(self.token):g} (tokens) and {float(self.channel):g} (channels)"


def expansion_of(request: Request) -> Expansion | None:
    """Return the expansion factors, or None where they follow from tokens, channels and connections.

    Raises ``UserError`` for a factor other than 1 where blocks have no hidden layer.
    """
    if not request.hidden:
        for name in ("expansion", "token_expansion", "channel_expansion"):
            value = getattr(request, name)
            if value not in (None, 1):
                raise UserError(
                    f"{name}={value:g}: blocks of a single layer have no hidden size, their expansion is 1. "
                    "model=mixer, rp_mixer and pk with model.hidden=true have one"
                )
        return Expansion(Fraction(1), Fraction(1), hidden=False)
    token = request.token_expansion or request.expansion
    channel = request.channel_expansion or request.expansion
    if token is None or channel is None:
        return None
    return Expansion(exact(token), exact(channel), hidden=True)


def expansion_from_shape(request: Request) -> Expansion:
    """Return g = 2·Omega / (C·S·(S + C)) from tokens, channels and connections (Hayase & Karakida 2024, appendix D.3).

    Raises ``UserError`` where one of the three is missing.
    """
    tokens, channels, connections = request.tokens, request.channels, request.connections
    if tokens is None or channels is None or connections is None:
        missing = [k for k in ("tokens", "channels", "connections") if getattr(request, k) is None]
        raise UserError(
            f"expansion=auto: needs tokens, channels and connections, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; give them, or an expansion such as 2"
        )
    factor = Fraction(2 * connections, tokens * channels * (tokens + channels))
    return Expansion(factor, factor, hidden=True)


def without_density(request: Request, expansion: Expansion) -> Request:
    """Replace the density p = Omega / (g·m²) of a request by the width or the connections that it fixes.

    Raises ``UserError`` where both were given and contradict it.
    """
    if request.density is None:
        return request
    factor = exact(request.density) * (expansion.token + expansion.channel) / 2
    width, connections = request.width, request.connections
    if width is None and request.tokens is not None and request.channels is not None:
        width = request.tokens * request.channels
    if width is None:
        width = max(1, rounded_root((connections or DEFAULT_CONNECTIONS) / factor, 2))
        connections = connections or DEFAULT_CONNECTIONS
    elif connections is None:
        connections = max(1, round(factor * width**2))
    elif relative(connections, factor * width**2) > TOLERANCE:
        fits = Fraction(connections) / (width**2) / (expansion.token + expansion.channel) * 2
        raise UserError(
            f"density={request.density:g}: contradicts width={width} with connections={connections}, "
            f"where it is {float(fits):.6g}; leave one of the three out"
        )
    return dataclasses.replace(request, density=None, width=width, connections=connections)
