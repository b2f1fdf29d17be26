"""The life of a run, from its directory to its end: the states it can be in, and what follows what.

    new ──► planned ──► queued ──► running ──► completed
                ▲          ▲          │
                │          │          ├──► interrupted, preempted, failed ──► queued or running again
                │          │          └──► diverged                            by the same command
                │          └─ a run that is lost, whose process is gone without a word
                └─ ``retry``, of runs that are failed, lost, diverged or cancelled

    cancelled: by ``cancel``, whatever is not over yet
    waiting, infeasible: points of a sweep that are no runs, yet or ever: a learning rate is searched, or no network
               meets the settings
    broken:    a run directory that cannot be read

``status.json`` stores the states that a run gives itself (``is_stored``); the others are what people see.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a run is in its life, in the order in which a person has less and more to do with it."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """Somebody wants no more of it; its process may still have to notice."""
    NEW = "new"
    """It has no directory yet."""
    WAITING = "waiting"
    PLANNED = "planned"
    """It has a directory, and nobody who trains it."""
    QUEUED = "queued"
    """A launching process will start it, or a job of a scheduler."""
    INTERRUPTED = "interrupted"
    """Somebody stopped it (Ctrl-C); it goes on from its checkpoint."""
    PREEMPTED = "preempted"
    """A signal of the system or a scheduler stopped it; it goes on from its checkpoint."""
    RUNNING = "running"
    DIVERGED = "diverged"
    """A loss or a weight became infinite, or not a number; the same settings would do so again."""
    FAILED = "failed"
    """An error ended it."""
    LOST = "lost"
    """``running`` is stored, but the process is gone."""
    BROKEN = "broken"
    INFEASIBLE = "infeasible"

    @property
    def is_stored(self) -> bool:
        """Whether ``status.json`` may say so."""
        return self in SHOWN and self not in (State.LOST, State.BROKEN)

    @property
    def is_over(self) -> bool:
        """Whether the same command leaves the run as it is."""
        return self in (State.COMPLETED, State.DIVERGED, State.CANCELLED)

    @property
    def has_ended(self) -> bool:
        """Whether no job takes the run up again by itself."""
        return self.is_over or self is State.FAILED

    @property
    def is_for_a_job(self) -> bool:
        """Whether the job that the run was given to trains it; ``running`` where its process is gone."""
        return self in (State.PLANNED, State.QUEUED, State.RUNNING, State.PREEMPTED)

    @property
    def may_be_retried(self) -> bool:
        """Whether ``retry`` takes it: the others are completed, or taken up by the same command anyway."""
        return self in (State.FAILED, State.LOST, State.DIVERGED, State.CANCELLED)


SHOWN = tuple(state for state in State if state not in (State.NEW, State.WAITING, State.INFEASIBLE))
"""What the state of a run directory can be, as people see it."""
