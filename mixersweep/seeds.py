"""Derived seeds, one for each purpose, so that no random choice depends on another or on global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixersweep.config import Config

PURPOSES = ("initialization", "structure", "split", "order", "augmentation")
"""What is random in a run: weights; masks and permutations; validation split; order of batches; augmentation."""


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for one purpose, e.g. ``derive(0, "initialization", "blocks.0.token_mixing")``.

    Distinct purposes give independent streams, whatever else the program draws.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_of(config: Config, purpose: str) -> int:
    """The run's seed for one of ``PURPOSES``: as set under ``seeds``, or derived from ``seed``."""
    assert purpose in PURPOSES, purpose
    chosen: int | None = getattr(config.seeds, purpose)
    return derive(config.seed, purpose) if chosen is None else chosen
