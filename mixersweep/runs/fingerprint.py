"""What makes two runs the same experiment: one hash over everything that decides the numbers, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from mixersweep.budget import Architecture
from mixersweep.config import Config

NUMBERS_VERSION = 1
"""Rises whenever a change of the code changes the losses of a run; runs made before are then other experiments."""

SIZES = ("tokens", "channels", "width", "token_hidden", "channel_hidden", "hidden_width", "connections")
"""The sizes that define a network; its counts follow from them and are left out."""


def fingerprint(config: Config, architecture: Architecture) -> str:
    """sha256 (64 hex digits) over canonical JSON of the solved config and ``NUMBERS_VERSION``."""
    content = {
        "numbers_version": NUMBERS_VERSION,
        "config": _content(config),
        "architecture": {name: getattr(architecture, name) for name in SIZES},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(settings: Any) -> dict[str, Any]:
    content = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.metadata.get("execution") or field.metadata.get("asked"):
            continue
        if "neutral" in field.metadata and value == field.metadata["neutral"]:
            continue
        content[field.name] = _content(value) if dataclasses.is_dataclass(value) else value
    return content
