"""Turn Python arguments into command-line overrides, and print notices.

Texts such as ``"optim.lr=0.1"`` are kept as they are; a keyword has ``__`` for each dot, ``optim__lr=0.1``. The first
text may be ``"--config-dir=DIR"``, which adds the user's own config files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from mixersweep.config.spelling import spell
from mixersweep.errors import UserError


def say(text: str) -> None:
    """Print one line on stderr, as the command does."""
    print(f"mixersweep: {text}", file=sys.stderr, flush=True)


def overrides_of(texts: Sequence[str], keywords: Mapping[str, object], *, several: bool = False) -> list[str]:
    """Turn texts, then keywords, into overrides.

    With ``several``, a list, tuple or range is values to sweep over; else a list is the value of a setting that takes
    one. Raises ``UserError`` for a value of a type that no setting takes.
    """
    overrides = list(texts)
    for name, value in keywords.items():
        key = name.replace("__", ".")
        if several and isinstance(value, (list, tuple, range)):
            if not value:
                raise UserError(f"{key}={value}: no value to sweep over")
            overrides.append(f"{key}={','.join(spell(key, each) for each in value)}")
        else:
            overrides.append(f"{key}={spell(key, value)}")
    return overrides
