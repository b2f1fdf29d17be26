"""A signal sets a flag, and the loop acts on it at the end of the step it is in."""

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
    """Takes over the signals that ask a run to stop; a second Ctrl-C does not wait for the step to end."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def install(self) -> StopSignals:
        """Take over the handlers of this process (its main thread must call).

        A signal that was blocked until now, as launchers begin their runs, is acted on at the first ``check``.
        """
        for number in _EXIT_CODES:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, list(_EXIT_CODES))
        return self

    @contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """Take over the handlers for as long as the context lasts, and give them back as they were.

        Another thread than the main one gets no signals: there this does nothing. A signal that came too late for what
        was done within is raised at the end (``check``), so that it is not lost on what comes next.
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
        """The number of the signal that asked to stop, None without one."""
        return None if self._received is None else int(self._received)

    def stop(self, number: int) -> None:
        """Raise ``RunStopped`` as for this signal, which another process received."""
        self._received = signal.Signals(number)
        self.check()

    def check(self) -> None:
        """Raise ``RunStopped``, with the exit code that says which kind of stop, where one was asked for."""
        if self._received is not None:
            word = "interrupted" if _EXIT_CODES[self._received] == INTERRUPTED else "preempted"
            raise RunStopped(f"{word} by {self._received.name}", _EXIT_CODES[self._received])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
