"""Settings as Python says them, turned into the overrides of the command line; and what every function tells a person.

The texts stand as they are, ``"optim.lr=0.1"``; a keyword is the same with ``__`` for each dot, ``optim__lr=0.1``. The
first text may be ``"--config-dir=DIR"``, which adds choices of one's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from mixersweep.errors import UserError


def say(text: str) -> None:
    """One line on stderr, as the command says it."""
    print(f"mixersweep: {text}", file=sys.stderr, flush=True)


def overrides_of(texts: Sequence[str], keywords: Mapping[str, object], *, several: bool = False) -> list[str]:
    """The overrides that texts and keywords mean, in that order.

    With ``several``, a list, tuple or range is values to sweep over; else a list is the value of a setting that takes
    one. Raises ``UserError`` for a value that no setting can have.
    """
    overrides = list(texts)
    for name, value in keywords.items():
        key = name.replace("__", ".")
        if several and isinstance(value, (list, tuple, range)):
            if not value:
                raise UserError(f"{key}={value}: no value to sweep over")
            overrides.append(f"{key}={','.join(spelled(key, each) for each in value)}")
        else:
            overrides.append(f"{key}={spelled(key, value)}")
    return overrides


def spelled(key: str, value: object) -> str:
    """A value in Hydra's grammar; raises ``UserError`` for one that no setting can have."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, (str, Path)):
        return _quoted(str(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_quoted(str(name))}:{spelled(key, each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple, range)):
        return "[" + ",".join(spelled(key, each) for each in value) + "]"
    raise UserError(f"{key}={value!r}: no setting takes a {type(value).__name__}; a text, number, list or mapping")


def _quoted(text: str) -> str:
    """A text as it is where Hydra reads it so, else in quotes, within which quotes and what ends in one are escaped."""
    if re.fullmatch(r"[A-Za-z0-9_./+*%@-]+", text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"
