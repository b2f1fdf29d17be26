"""A stranger's machine: a folder of their own to stand in, and the command in this process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mixersweep.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty; no setting comes from the environment."""
    for name in [name for name in os.environ if name.startswith(("MIXERSWEEP_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mixersweep(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """``mixersweep WORD ...`` in this process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        return code, *capsys.readouterr()

    return run
