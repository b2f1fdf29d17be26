"""The state of a run and the process that holds it, stored in ``status.json`` and changed under a lock.

A process that trains a run *holds* it: its host, pid and heartbeat are in the status. If that process is gone (known at
once on its own host, by its silent heartbeat on any other), another may take the run over. Clocks of hosts differ, so
an old heartbeat only raises suspicion: a process that wants the run then observes whether the heartbeat changes
(``observe_heartbeats``). A process whose run was taken over stops writing to it (``Hold.confirm``). Storing
``cancelled`` over a running status ends the run: its holder sees that at its next heartbeat.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mixersweep.errors import INTERRUPTED, RunCancelled, RunDiverged, RunHeld, RunStopped
from mixersweep.runs.files import locked, overwrite_json, write_json
from mixersweep.runs.state import State

BEAT_EVERY = 10.0
DEAD_AFTER = 60.0
"""Seconds between heartbeats, and seconds of silence after which another host considers a run lost."""

_OBSERVED: dict[tuple[Any, ...], _Observed] = {}
"""The heartbeats of processes on other hosts that this process has observed, by host, pid and start of the hold."""


@dataclass
class _Observed:
    """An observed heartbeat, and when it was first read and last seen to change (seconds of ``time.monotonic``)."""

    heartbeat: float
    first: float
    changed: float | None = None


@dataclass(frozen=True)
class Status:
    """The content of ``status.json``; times are in seconds since 1970 (UTC).

    ``since`` is when the process took or queued the run. ``job`` is the scheduler's id of the job that the run is
    queued or running in, None without one.
    """

    state: State
    host: str | None = None
    pid: int | None = None
    pid_started: float | None = None
    since: float | None = None
    heartbeat: float | None = None
    error: str | None = None
    job: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the run is held by a process that is alive, as far as this host can tell."""
        return self.state is State.RUNNING and self._holder_lives()

    @property
    def is_on_this_host(self) -> bool:
        """Whether the process that holds or held the run is on this host."""
        return self.host == this_host()

    @property
    def is_stopping(self) -> bool:
        """Whether the run is cancelled, but the process that held it has not stopped yet."""
        return self.state is State.CANCELLED and self._holder_lives()

    def _holder_lives(self) -> bool:
        if self.pid is None or self.heartbeat is None:
            return False
        if self.is_on_this_host:
            return self.pid_started == _start_time(self.pid)
        seen, now = self._observe(), time.monotonic()
        if seen.changed is not None:
            return now - seen.changed < DEAD_AFTER
        return now - seen.first < DEAD_AFTER and not self._seems_silent

    @property
    def is_unsure(self) -> bool:
        """Whether the heartbeat has to be observed for a while to tell if another host's process is alive."""
        if self.pid is None or self.heartbeat is None or self.host == this_host():
            return False
        if self.state not in (State.RUNNING, State.CANCELLED):
            return False
        seen = self._observe()
        return seen.changed is None and self._seems_silent and time.monotonic() - seen.first < _beats(3)

    @property
    def _seems_silent(self) -> bool:
        """Whether the heartbeat is too old, or in the future, by this host's clock."""
        return not -BEAT_EVERY < time.time() - (self.heartbeat or 0) < DEAD_AFTER

    def _observe(self) -> _Observed:
        """Record the present heartbeat, and return what has been observed of it so far."""
        key, now = (self.host, self.pid, self.since), time.monotonic()
        assert self.heartbeat is not None
        seen = _OBSERVED.setdefault(key, _Observed(self.heartbeat, now))
        if seen.heartbeat != self.heartbeat:
            seen.heartbeat, seen.changed = self.heartbeat, now
        return seen

    @property
    def shown(self) -> State:
        """The state to show to people: ``lost`` for a running run whose process is gone."""
        return State.LOST if self.state is State.RUNNING and not self.is_alive else self.state

    @property
    def holder(self) -> str:
        """The process that holds the run, in words: its pid, host and since when."""
        since = datetime.fromtimestamp(self.since or 0, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        since += " by its clock, which is ahead" if (self.since or 0) > time.time() + BEAT_EVERY else ""
        return f"pid {self.pid} on {(self.host or '').partition('/')[0]} since {since}"


_KEYS = frozenset(field.name for field in dataclasses.fields(Status))


def this_host() -> str:
    """Return the host name and the process-id namespace, within which a pid is unique."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{namespace}"


def read_status(run_dir: Path) -> Status:
    """Read the stored status; a directory without one is ``planned``."""
    try:
        return status_of((run_dir / "status.json").read_bytes())
    except FileNotFoundError:
        return Status(State.PLANNED)


def status_of(content: bytes) -> Status:
    """Parse the content of ``status.json``, which another version may have written.

    If the state cannot be read (an empty file after a crash, an unknown state), it is taken to be ``running``, which is
    shown as lost unless the process that the file names is alive. ``error`` then gives the reason.
    """
    try:
        stored = json.loads(content)
    except ValueError as error:
        return Status(State.RUNNING, error=f"status.json cannot be read: {error}")
    if not isinstance(stored, dict):
        return Status(State.RUNNING, error="status.json cannot be read: it is no JSON object")
    known = {name: value for name, value in stored.items() if name in _KEYS}
    try:
        state = State(known.pop("state"))
        return Status(state if state.is_stored else State.RUNNING, **known)
    except (KeyError, ValueError):
        problem = f"there is no state {stored['state']}" if "state" in stored else "it names no state"
        return Status(State.RUNNING, **{**known, "error": f"status.json cannot be read: {problem}"})


def _unknown_keys(path: Path) -> dict[str, Any]:
    """Return the keys of a stored status that this version does not know, to keep them."""
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in stored.items() if name not in _KEYS} if isinstance(stored, dict) else {}


def observe_heartbeats(
    run_dirs: Iterable[Path], notify: Callable[[str], None] = lambda _: None, check: Callable[[], None] = lambda: None
) -> None:
    """Observe the heartbeats of runs whose process on another host seems gone until it is certain, all in parallel.

    Takes at most ``3 * BEAT_EVERY`` seconds, and none if there is no such run. ``check`` is called repeatedly and may
    raise to end it.
    """
    unsure = {run_dir: status for run_dir in run_dirs if (status := read_status(run_dir)).is_unsure}
    if unsure:
        first = next(iter(unsure.values()))
        notify(f"{len(unsure)} of the runs may be lost ({first.holder}): looking for up to {_beats(3):g} s if it lives")
    while unsure:
        check()
        time.sleep(min(0.2, BEAT_EVERY / 4))
        unsure = {run_dir: status for run_dir in unsure if (status := read_status(run_dir)).is_unsure}


def _beats(count: int) -> float:
    return count * BEAT_EVERY


def set_status(run_dir: Path, status: Status) -> None:
    """Replace the stored status atomically, or by overwriting the file if the disk is full."""
    assert status.state.is_stored, status.state
    path = run_dir / "status.json"
    stored = {**dataclasses.asdict(status), **_unknown_keys(path)}
    try:
        write_json(path, stored)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
            raise
        overwrite_json(path, stored)


class Hold:
    """The right of this process to train in a run directory, kept alive by a heartbeat."""

    def __init__(self, run_dir: Path, status: Status) -> None:
        self._run_dir = run_dir
        self._status = status
        self._ended = threading.Event()
        self._new_holder: Status | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ``RunCancelled`` if the run was cancelled, and ``RunHeld`` if another process has taken it over.

        The latter happens if this process was suspended for long.
        """
        if self._cancelled:
            raise RunCancelled(f"{self._run_dir}: cancelled")
        if self._new_holder is not None:
            raise RunHeld(f"{self._run_dir}: taken over by {self._new_holder.holder} while this process was silent")

    def confirm(self) -> None:
        """Raise ``RunHeld`` if another process holds the run by now; call this before writing to the run directory."""
        stored = read_status(self._run_dir)
        if not self._is_mine(stored):
            self._new_holder = stored
            self.check()

    def _is_mine(self, stored: Status) -> bool:
        mine = self._status
        return (stored.host, stored.pid, stored.since) == (mine.host, mine.pid, mine.since)

    @property
    def is_cancelled(self) -> bool:
        """Whether the run has been cancelled, as read from its directory now."""
        with status_lock(self._run_dir):
            stored = read_status(self._run_dir)
        return stored.state is State.CANCELLED and (stored.pid, stored.since) == (self._status.pid, self._status.since)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_EVERY):
            with contextlib.suppress(OSError):  # a temporary failure of disk or network; the next beat tries again
                self._store(dataclasses.replace(self._status, heartbeat=time.time()))

    def _store(self, status: Status) -> None:
        with status_lock(self._run_dir):
            stored = read_status(self._run_dir)
            if not self._is_mine(stored):
                self._new_holder = stored
            elif stored.state is State.CANCELLED and status.state is not State.COMPLETED:
                self._cancelled = True
                pid = status.pid if status.state is State.RUNNING else None  # at the end, the hold is released
                set_status(self._run_dir, dataclasses.replace(stored, pid=pid, heartbeat=status.heartbeat))
            else:
                set_status(self._run_dir, status)

    def _end(self, state: State, error: str | None) -> None:
        self._ended.set()
        self._thread.join()
        self._store(dataclasses.replace(self._status, state=state, heartbeat=time.time(), error=error))


@contextmanager
def hold(run_dir: Path) -> Iterator[Hold]:
    """Hold the run while the block trains it; the way in which the block ends decides the run's state.

    Raises ``RunHeld`` if a live process holds it already, and ``RunCancelled`` if it was cancelled before or is during
    the block.
    """
    observe_heartbeats([run_dir])
    pid = os.getpid()
    now = time.time()
    mine = Status(State.RUNNING, this_host(), pid, _start_time(pid), since=now, heartbeat=now)
    with status_lock(run_dir):
        status = read_status(run_dir)
        if status.is_alive:
            raise RunHeld(f"{run_dir}: held by {status.holder}; wait for it, or stop that process")
        if status.state is State.CANCELLED:
            raise RunCancelled(f"{run_dir}: cancelled; mixersweep retry makes it one to train again")
        if status.state is State.QUEUED:
            mine = dataclasses.replace(mine, job=status.job)
        set_status(run_dir, mine)
    held = Hold(run_dir, mine)
    state, error = State.FAILED, None
    try:
        yield held
        state = State.COMPLETED
    except RunStopped as stopped:
        state, error = State.INTERRUPTED if stopped.exit_code == INTERRUPTED else State.PREEMPTED, str(stopped)
        if held.is_cancelled:  # a cancelled run, whatever signal came with it
            raise RunCancelled(f"{run_dir}: cancelled") from None
        raise
    except KeyboardInterrupt:
        state, error = State.INTERRUPTED, "interrupted by a second SIGINT"
        raise
    except RunCancelled:
        state = State.CANCELLED
        raise
    except RunDiverged as diverged:
        state, error = State.DIVERGED, str(diverged)
        raise
    except BaseException as exception:
        error = f"{type(exception).__name__}: {exception}"
        raise
    finally:
        held._end(state, error)


def status_lock(run_dir: Path) -> AbstractContextManager[None]:
    """Return the lock to hold while reading and changing a run's status; waits for it up to 30 s."""
    return locked(run_dir / ".lock", timeout=30)


def _start_time(pid: int) -> float | None:
    """Return when a process began, to distinguish it from a later one with the same pid; None if there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
