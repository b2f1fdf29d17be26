"""Write Python values in Hydra's override grammar, with quotes around text that has special characters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path

from mixersweep.errors import UserError


def spell(key: str, value: object) -> str:
    """Write a value for ``key`` in Hydra's grammar; raises ``UserError`` for a type that no setting takes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, (str, Path)):
        return _quote(str(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_quote(str(name))}:{spell(key, each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple, range)):
        return "[" + ",".join(spell(key, each) for each in value) + "]"
    raise UserError(f"{key}={value!r}: no setting takes a {type(value).__name__}; a text, number, list or mapping")


def _quote(text: str) -> str:
    """Put a text in single quotes unless it is safe without; escapes quotes, and backslashes before a quote."""
    if re.fullmatch(r"[A-Za-z0-9_./+*%@-]+", text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"
