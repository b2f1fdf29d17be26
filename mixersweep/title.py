"""The title of this process, as ``ps`` and ``top`` show it, so that each process tells which runs are its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SHORT = "mixersweep"
"""The short name, of at most 15 letters and without a space.

Slurm's ``proctrack/linuxproc``, for one, reads ``/proc/PID/stat`` word by word. Where the name is two words it does not
find the parent behind it, takes the process for none of the job's, and never ends it.
"""

NO_ENVIRONMENT = "SPT_NOENV"
"""The variable by which ``setproctitle`` leaves alone the environment that the system shows of a process."""


@contextmanager
def process_title(text: str) -> Iterator[None]:
    """Title this process ``mixersweep TEXT`` inside the block; a title is cut where the command line was shorter.

    The short name, which ``top`` and ``pgrep`` show, is ``mixersweep``.

    Does nothing where ``setproctitle`` is missing, as in an installation from before it was required.
    """
    try:
        import setproctitle
    except ImportError:
        yield
        return
    before, short_before = _titles(setproctitle)
    setproctitle.setproctitle(f"{SHORT} {text}")
    setproctitle.setthreadtitle(SHORT)
    try:
        yield
    finally:
        setproctitle.setproctitle(before)
        setproctitle.setthreadtitle(short_before)


def _titles(library: Any) -> tuple[str, str]:
    """Return the title of this process and of its thread; the first call finds the memory that titles may use."""
    is_set = NO_ENVIRONMENT in os.environ
    os.environ.setdefault(NO_ENVIRONMENT, "1")
    try:
        short = library.getthreadtitle()  # first, since the next line changes it
        return library.getproctitle(), short
    finally:
        if not is_set:
            del os.environ[NO_ENVIRONMENT]
