"""Settings as Python says them, turned into the overrides of the command line; and what every function tells a person.

The texts stand as they are, ``"optim.lr=0.1"``; a keyword is the same with ``__`` for each dot, ``optim__lr=0.1``. The
first text may be ``"--config-dir=DIR"``, which adds choices of one's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from mixersweep.config.spelling import spelled
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
