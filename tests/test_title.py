"""A process that trains is called after its run while it does, and not afterwards."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mixersweep.title import process_title

PROGRAM = """
import os, psutil
from mixersweep.title import process_title
environment = dict(os.environ)
me = psutil.Process()
short = lambda: open('/proc/self/comm').read().strip()
shown = lambda: ' '.join(me.cmdline()).strip()
before, name = shown(), short()
with process_title('train a'):
    assert shown() == 'mixersweep train a', shown()
    assert short() == 'mixersweep', short()
    assert dict(os.environ) == environment
assert (shown(), short()) == (before, name), (shown(), short())
assert me.environ()['MARK'] == 'here'
"""


def test_a_title_is_taken_back_and_the_environment_stays_readable() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env={"MARK": "here"}, cwd=Path(__file__).parents[1])


def test_without_the_library_there_is_no_title(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setproctitle", None)
    before = psutil.Process().cmdline()
    with process_title("train a"):
        assert psutil.Process().cmdline() == before
