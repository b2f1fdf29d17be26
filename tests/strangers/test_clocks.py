"""Two hosts on one directory whose clocks differ: what lives is left alone, and what is dead is taken over."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixersweep.errors import RunHeld
from mixersweep.runs import RunDirectory, Status, hold, read_status, set_status, status
from mixersweep.runs.state import State
from mixersweep.runs.status import status_lock
from mixersweep.sweeps import mend
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train
from tests.strangers.conftest import Command
from tests.training.small import DIGITS, SIZES, directory

QUICK = ("tracking=none", "epochs=1", "threads=1", "connections=4096", "depth=1", "device=cpu", "batch_size=1500")
AHEAD, BEHIND = 3600.0, -120.0


@pytest.fixture(autouse=True)
def _quick_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "BEAT_EVERY", 0.2)


def far(run_dir: Path, clock: float, **more: object) -> Status:
    """The run is held by a process of another host, by whose clock it is so much later."""
    now = time.time() + clock
    held = Status(State.RUNNING, "far/away", 7, 0.0, since=now - 5, heartbeat=now)
    with status_lock(run_dir):
        set_status(run_dir, dataclasses.replace(held, **more))  # type: ignore[arg-type]
    return read_status(run_dir)


@contextmanager
def living(run_dir: Path, clock: float) -> Iterator[Status]:
    """The same, and its heart beats until the run is no longer its own."""
    held, over = far(run_dir, clock), threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            with status_lock(run_dir):
                stored = read_status(run_dir)
                if (stored.host, stored.pid) != ("far/away", 7):
                    return
                set_status(run_dir, dataclasses.replace(stored, heartbeat=time.time() + clock))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()


@pytest.fixture
def run(here: Path, digits: Path) -> RunDirectory:
    return directory(here / "runs", *DIGITS, *SIZES, f"data_dir={digits}", "epochs=1")


@pytest.mark.parametrize("clock", [AHEAD, BEHIND, -AHEAD, 0.0])
def test_a_run_that_lives_is_not_taken_over(run: RunDirectory, clock: float) -> None:
    with living(run.path, clock), pytest.raises(RunHeld, match="held by pid 7 on far since"), hold(run.path):
        pass


@pytest.mark.parametrize("clock", [AHEAD, BEHIND, -AHEAD])
def test_a_run_whose_holder_is_dead_is_taken_over(run: RunDirectory, clock: float) -> None:
    held = far(run.path, clock)
    assert (" by its clock, which is ahead" in held.holder) == (clock > 0)
    assert not held.is_alive
    with hold(run.path):
        assert run.status().host != "far/away"
    assert run.status().state is State.COMPLETED


@pytest.mark.parametrize("clock", [AHEAD, BEHIND])
def test_the_commands_leave_alone_what_lives(mixersweep: Command, run: RunDirectory, clock: float) -> None:
    with living(run.path, clock):
        code, _, said = mixersweep("train", f"run_dir={run.path}")
        assert code == 4 and "held by pid 7 on far" in said and "1 of the runs may be lost" in said
        assert read_status(run.path).pid == 7
    with living(run.path, clock):
        assert mixersweep("retry", "--state", "lost", "runs")[0] == 0
        assert read_status(run.path).state is State.RUNNING


def test_a_sweep_leaves_alone_what_lives_and_takes_what_is_dead(mixersweep: Command, here: Path) -> None:
    words = ("train", "-m", "seed=0,1", *QUICK, "hydra.launcher.jobs=1", "hydra.launcher.warm=false")
    lives, dead = (directory(here / "runs", *QUICK, f"seed={seed}").path for seed in (0, 1))
    far(dead, AHEAD, pid=8)
    with living(lives, BEHIND):
        code, _, said = mixersweep(*words)
    assert code == 1
    assert "of the runs may be lost" in said and "for up to 0.6 s if it lives" in said
    assert (read_status(lives).pid, read_status(dead).state) == (7, State.COMPLETED)


def test_a_run_that_lives_elsewhere_can_be_cancelled_whatever_its_clock(run: RunDirectory) -> None:
    far(run.path, BEHIND)
    ((done, _),) = mend.cancel([run.path])
    assert done
    stored = read_status(run.path)
    assert (stored.state, stored.host, stored.pid) == (State.CANCELLED, "far/away", 7)  # whose process finds it there


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_a_former_owner_writes_no_more(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As when a process was suspended, and another host went on meanwhile: after so many batches."""
    monkeypatch.setattr(status, "BEAT_EVERY", 1e6)  # its own heart would tell it later

    class Suspended(StopSignals):
        left = steps

        def check(self) -> None:
            self.left -= 1
            if self.left == 0:
                far(run.path, 0.0)
                run.append_row({"epoch": 1, "time": 0.0})

    with pytest.raises(RunHeld, match="taken over by pid 7 on far"):
        train(run, Suspended(), lambda _: None)
    assert run.rows() == [{"epoch": 1, "time": 0.0}]
    assert not run.checkpoint.exists() and not run.predictions.exists()
    assert not (run.path / "result.json").exists()
    assert read_status(run.path).pid == 7
