"""Signals that stop a run: they set a flag, on which the training loop acts at the end of its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mixersweep.errors import INTERRUPTED, PREEMPTED, RunStopped

_EXIT_CODES = {
    signal.SIGINT: INTERRUPTED,
    signal.SIGHUP: INTERRUPTED,
    signal.SIGTERM: PREEMPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGUSR2: PREEMPTED,
}


class StopSignals:
    """Handlers for the signals that ask a run to stop; a second Ctrl-C interrupts at once, within the step."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def install(self) -> StopSignals:
        """Install the signal handlers of this process; must be called in its main thread.

        Launchers start runs with these signals blocked; one that arrived meanwhile is acted on at the first ``check``.
        """
        for number in _EXIT_CODES:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, list(_EXIT_CODES))
        return self

    @contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """A context with the signal handlers installed, which restores the former ones at its end.

        Outside the main thread, which alone receives signals, it does nothing. A signal that arrived too late to be
        acted on within the context is raised at its end (``check``), so that it is not lost.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in _EXIT_CODES}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            yield self.install()
        finally:
            for number, handler in before.items():
                if handler is not None:  # None is one that Python did not set, and cannot set again
                    signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.check()

    @property
    def received(self) -> int | None:
        """The number of the signal that asked to stop; None if there was none."""
        return None if self._received is None else int(self._received)

    def stop(self, number: int) -> None:
        """Raise ``RunStopped`` for a signal that another process received."""
        self._received = signal.Signals(number)
        self.check()

    def check(self) -> None:
        """Raise ``RunStopped``, with the exit code for the kind of stop, if a signal asked for one."""
        if self._received is not None:
            word = "interrupted" if _EXIT_CODES[self._received] == INTERRUPTED else "preempted"
            raise RunStopped(f"{word} by {self._received.name}", _EXIT_CODES[self._received])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
