"""The title of this process, as ``ps`` and ``top`` show it, so that each process tells which runs are its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_title(text: str) -> Iterator[None]:
    """Title this process ``mixersweep TEXT`` inside the block; a title is cut where the command line was shorter.

    Does nothing where ``setproctitle`` is missing, as in an installation from before it was required.
    """
    os.environ.setdefault("SPT_NOENV", "1")  # else titles are written over the environment that the system shows
    try:
        import setproctitle
    except ImportError:
        yield
        return
    short_before = setproctitle.getthreadtitle()  # first, since the next line changes it
    before = setproctitle.getproctitle()
    setproctitle.setproctitle(f"mixersweep {text}")
    try:
        yield
    finally:
        setproctitle.setproctitle(before)
        setproctitle.setthreadtitle(short_before)
