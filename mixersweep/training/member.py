"""One run of a pack: its directory, the hold on it, its position, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from mixersweep.errors import MixersweepError
from mixersweep.runs import Hold, RunDirectory, hold
from mixersweep.training.checkpoint import Checkpoint, load_checkpoint, remove_leftovers


class Member:
    """A run that this process trains, alone or in a pack; ``held`` is its hold, None if another process has it.

    ``kept`` is its last checkpoint, ``state`` the checkpoint that training updates.
    """

    state: Checkpoint

    def __init__(self, directory: RunDirectory, held: Hold | None = None) -> None:
        self.directory, self.config, self.held = directory, directory.run.config, held
        self._holding: AbstractContextManager[Hold] | None = None
        self.kept: Checkpoint | None = None
        self.rows_written = 0
        """The number of rows in ``metrics.jsonl``."""
        self.is_over = False
        self.error: BaseException | None = None
        self.is_eager = False
        """Whether it is too large for the packed engine even alone."""
        self.leaving: MixersweepError | None = None
        """Why it leaves the pack after this epoch (cancelled or taken over); None if it stays."""

    def hold(self) -> None:
        """Hold the run until ``end``; if another process holds it, or it was cancelled, it is over."""
        holding = hold(self.directory.path)
        try:
            self.held = holding.__enter__()
        except MixersweepError as error:
            self.is_over, self.error = True, error
        else:
            self._holding = holding

    def load(self, report: Callable[[str], None]) -> None:
        """Read its last checkpoint, if it is not over; if checkpoints exist but none can be read, end it."""
        if self.is_over:
            return
        try:
            self.kept = load_checkpoint(self.directory.checkpoint, self.directory.run.fingerprint, report)
        except MixersweepError as error:
            self.end(error)

    def is_still_held(self) -> bool:
        """Whether it is still to be trained here; ends it if it was cancelled or taken over while it waited."""
        if not self.is_over:
            try:
                self.check_hold()
            except MixersweepError as error:
                self.end(error)
        return not self.is_over

    @property
    def position(self) -> tuple[int, int]:
        """The number of finished epochs, and of finished steps in the next."""
        return (len(self.kept.rows), self.kept.step) if self.kept else (0, 0)

    def begin(self, environment: dict[str, Any], started: str, *, writes: bool) -> None:
        """Set ``state`` to the checkpoint or to a fresh one; ``writes`` also restores the files of the run to it."""
        self.state = self.kept or Checkpoint(self.directory.run.fingerprint, environment, started)
        self.rows_written = len(self.state.rows)
        if writes:
            remove_leftovers(self.directory.checkpoint)
            self.directory.restore_rows(self.state.rows)

    def append_rows(self) -> None:
        """Append the new rows to ``metrics.jsonl``."""
        self.confirm_hold()
        self.directory.append_row(*self.state.rows[self.rows_written :])
        self.rows_written = len(self.state.rows)

    def check_hold(self) -> None:
        """Raise if the run was cancelled, or taken over by another process."""
        if self.held is not None:
            self.held.check()

    def confirm_hold(self) -> None:
        """Raise if another process has taken the run over; called before each write."""
        if self.held is not None:
            self.held.confirm()

    def end(self, error: BaseException | None) -> BaseException | None:
        """Release the hold and record how the run ended; returns its final error, None for a completed run."""
        if self.is_over:
            return self.error
        self.is_over, self.error = True, error
        if self._holding is not None:
            try:
                self._holding.__exit__(*((type(error), error, error.__traceback__) if error else (None, None, None)))
            except BaseException as other:  # a signal that came with a cancellation is one
                self.error = other
        return self.error
