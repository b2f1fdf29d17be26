"""Describe how runs ended, by their directories alone."""

from __future__ import annotations

from pathlib import Path

from mixersweep.runs import read_status
from mixersweep.runs.files import read_json
from mixersweep.runs.state import State


def outcome_line(run_dir: Path) -> str:
    """Return the state, name and test accuracy or error of a run as one line."""
    state = state_of(run_dir)
    if state is State.COMPLETED:
        detail = f"test {read_json(run_dir / 'result.json')['test_accuracy']:.4f}"
    else:
        detail = f"held by {read_status(run_dir).holder}" if state is State.RUNNING else error_of(run_dir)
    return "  ".join(filter(None, [f"{state:11}", run_dir.name, detail]))


def state_of(run_dir: Path) -> State:
    """Return the state of a run as people see it; ``new`` if it has no directory."""
    return read_status(run_dir).shown if (run_dir / "config.yaml").exists() else State.NEW


def error_of(run_dir: Path) -> str:
    """Return the first line of the error that ended the run, empty without one."""
    lines = (read_status(run_dir).error or "").splitlines()
    return lines[0] if lines else ""
