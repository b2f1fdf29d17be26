"""Messages of all verbs to the user, as lines on stderr; stdout is for results."""

from __future__ import annotations

import os
import sys
import traceback

from mixersweep.errors import INTERRUPTED, MixersweepError


def say(text: str) -> None:
    """Print one line on stderr."""
    print(f"mixersweep: {text}", file=sys.stderr, flush=True)


def report_error(error: MixersweepError) -> int:
    """Print the one line of an expected error and return its exit code."""
    if os.environ.get("MIXERSWEEP_DEBUG"):
        traceback.print_exception(error)
    say(f"error: {error}" if error.exit_code != INTERRUPTED else str(error))
    return error.exit_code
