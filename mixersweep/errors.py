"""The expected errors that end a command, each with its exit code."""

from __future__ import annotations

from collections.abc import Mapping

DONE, FAILED, USER_MISTAKE, DIVERGED, HELD, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 4, 75, 130


class MixersweepError(Exception):
    """An expected error, shown as one line on stderr with an exit code and never as a traceback."""

    exit_code = FAILED


class UserError(MixersweepError):
    """An invalid setting; the message names it, its value, the reason and the nearest that works."""

    exit_code = USER_MISTAKE


class Infeasible(UserError):
    """Settings that are each valid but impossible together; ``nearest`` maps settings to values that would work."""

    def __init__(self, message: str, nearest: Mapping[str, int | str] | None = None) -> None:
        super().__init__(message)
        self.nearest = dict(nearest or {})


class DataMissing(UserError):
    """A data set that is not on this machine; the message names the command that gets it."""


class RunDiverged(MixersweepError):
    """The loss is no longer finite."""

    exit_code = DIVERGED


class RunFailed(MixersweepError):
    """Something outside the run ended it, such as memory or a full disk; the message says what would help."""


class RunCancelled(MixersweepError):
    """The run was cancelled while it trained (``mixersweep cancel``); only ``retry`` resumes it."""


class RunHeld(MixersweepError):
    """Another live process is training in this run directory."""

    exit_code = HELD


class RunStopped(MixersweepError):
    """A signal stopped the run; the same command resumes it from its last checkpoint."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
