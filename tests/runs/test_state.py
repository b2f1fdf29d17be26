"""The states of a run: what is stored and shown of them, and that the questions asked of them agree."""

import json
from pathlib import Path

import pytest

from mixersweep.runs import State, Status, read_status, set_status
from mixersweep.runs.state import SHOWN


@pytest.mark.parametrize("state", [state for state in State if state.is_stored])
def test_a_stored_state_is_read_as_it_was_written(state: State, tmp_path: Path) -> None:
    set_status(tmp_path, Status(state))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == state.value
    assert read_status(tmp_path).state is state
    assert read_status(tmp_path).shown is (State.LOST if state is State.RUNNING else state)  # without a process


@pytest.mark.parametrize("state", [state for state in State if not state.is_stored])
def test_what_people_alone_see_is_not_stored(state: State, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        set_status(tmp_path, Status(state))
    assert not (tmp_path / "status.json").exists()


def test_every_run_is_taken_up_by_somebody_or_over() -> None:
    """By the same command or by its job, or by ``retry``, unless it is completed; never by a job what has ended."""
    for state in SHOWN:
        if state is State.BROKEN:
            continue
        assert not state.is_over or state.may_be_retried or state is State.COMPLETED
        assert not (state.has_ended and state.is_for_a_job)
        assert state.has_ended or not state.is_over
