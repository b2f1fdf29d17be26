"""What can end a command other than success, each with the exit code that says so."""

from __future__ import annotations

from collections.abc import Mapping

DONE, FAILED, USER_MISTAKE, DIVERGED, HELD, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 4, 75, 130


class MixersweepError(Exception):
    """An end of the command that is no bug: one line on stderr and an exit code, never a traceback."""

    exit_code = FAILED


class UserError(MixersweepError):
    """A setting that cannot be; the message names it, its value, the reason and the nearest that works."""

    exit_code = USER_MISTAKE


class Infeasible(UserError):
    """Settings that are each fine and impossible together; ``nearest`` are those that would work in their place."""

    def __init__(self, message: str, nearest: Mapping[str, int | str] | None = None) -> None:
        super().__init__(message)
        self.nearest = dict(nearest or {})


class DataMissing(UserError):
    """A data set that is not on this machine; the message names the command that gets it."""


class RunDiverged(MixersweepError):
    """The loss is no longer finite."""

    exit_code = DIVERGED


class RunFailed(MixersweepError):
    """Something outside the run ended it: memory, a disk; the message says what would help."""


class RunCancelled(MixersweepError):
    """Somebody cancelled the run while it trained (``mixersweep cancel``); only ``retry`` takes it up again."""


class RunHeld(MixersweepError):
    """Another live process trains in this run directory."""

    exit_code = HELD


class RunStopped(MixersweepError):
    """A signal asked the run to stop; the same command goes on from its last checkpoint."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
