"""The states of a run and the transitions between them.

    new ──► planned ──► queued ──► running ──► completed
                ▲          ▲          │
                │          │          ├──► interrupted, preempted, failed ──► queued or running again
                │          │          └──► diverged                            by the same command
                │          └─ a lost run, whose process died without storing a state
                └─ ``retry``, of runs that are failed, lost, diverged or cancelled

    cancelled: by ``cancel``, from any state that is not over
    waiting, infeasible: points of a sweep that are not runs, since their learning rate is still searched, or no network
               meets their settings
    broken:    a run directory that cannot be read

``status.json`` stores only some states (``is_stored``); the others are derived when a run is shown.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a run; the order is that of display, with what needs attention last."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """The user cancelled it; its process may still be about to stop."""
    NEW = "new"
    """It has no directory yet."""
    WAITING = "waiting"
    PLANNED = "planned"
    """It has a directory, but no process or job that trains it."""
    QUEUED = "queued"
    """A launching process will start it, or a job of a scheduler."""
    INTERRUPTED = "interrupted"
    """The user stopped it (Ctrl-C); it can resume from its checkpoint."""
    PREEMPTED = "preempted"
    """A signal of the system or a scheduler stopped it; it can resume from its checkpoint."""
    RUNNING = "running"
    DIVERGED = "diverged"
    """A loss or weight became infinite or NaN, which the same settings would repeat."""
    FAILED = "failed"
    """An error ended it."""
    LOST = "lost"
    """``running`` is stored, but the process is gone."""
    BROKEN = "broken"
    INFEASIBLE = "infeasible"

    @property
    def is_stored(self) -> bool:
        """Whether ``status.json`` may contain this state."""
        return self in SHOWN and self not in (State.LOST, State.BROKEN)

    @property
    def is_over(self) -> bool:
        """Whether the same command leaves the run as it is."""
        return self in (State.COMPLETED, State.DIVERGED, State.CANCELLED)

    @property
    def has_ended(self) -> bool:
        """Whether no job resumes the run by itself."""
        return self.is_over or self is State.FAILED

    @property
    def is_for_a_job(self) -> bool:
        """Whether the job that the run is assigned to should train it; for ``running``, only if its process is gone."""
        return self in (State.PLANNED, State.QUEUED, State.RUNNING, State.PREEMPTED)

    @property
    def may_be_retried(self) -> bool:
        """Whether ``retry`` accepts it: other runs are completed, or resumed by the same command anyway."""
        return self in (State.FAILED, State.LOST, State.DIVERGED, State.CANCELLED)


SHOWN = tuple(state for state in State if state not in (State.NEW, State.WAITING, State.INFEASIBLE))
"""The states that a run directory can be shown in."""
