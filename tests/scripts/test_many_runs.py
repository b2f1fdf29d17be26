"""The measurement of commands with thousands of runs, as a script, with ten runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("plan, all new", "freeze and submit", "plan, all queued", "status, all queued", "cancel"),
    *("status, all completed", "status --json", "report", "completion of a run"),
)


@pytest.mark.slow
def test_the_script_gives_a_row_for_each_command() -> None:
    command = [sys.executable, "-m", "scripts.studies.many_runs", "--widths", "2", "--seeds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, header, *rows = done.stdout.splitlines()
    assert (count, header.split()) == ("10 runs", ["command", "wall", "s", "CPU", "s", "peak", "MB"])
    assert tuple(row[:26].strip() for row in rows) == COMMANDS
    assert all(float(number) > 0 for row in rows for number in row[26:].split())


def test_more_widths_than_there_are_is_a_mistake() -> None:
    command = [sys.executable, "-m", "scripts.studies.many_runs", "--widths", "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--widths 25 --seeds 42: 1 to 24 widths" in done.stderr
