"""A user whom the machine does not know: no HOME, and no entry that says where it is (docker --user, OpenShift)."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.layouts import write_tree
from tests.strangers.conftest import Command
from tests.strangers.test_images import SMALL, prepared

NO_HOME = "there is no such home directory here (HOME is not set?); say a whole path"


@pytest.fixture(autouse=True)
def _nobody(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path("~").expanduser()


@pytest.mark.parametrize(
    "words", [["status"], ["plan"], ["plan", "-m", "seed=0,1"], ["report"], ["data", "list", "--data-dir", "."]]
)
def test_what_needs_no_home_needs_none(mixersweep: Command, here: Path, words: list[str]) -> None:
    (here / "runs").mkdir()
    code, _, said = mixersweep(*words)
    assert "Traceback" not in said and "home" not in said
    assert code == (2 if words == ["report"] else 0), said


def test_a_run_on_what_ships_trains(mixersweep: Command) -> None:
    code, out, said = mixersweep("train", *SMALL, "data=fashion_mnist_10k", "batch_size=1500")
    assert (code, Path(out.strip()).name) == (0, "result.json"), said


def test_images_of_ones_own_are_found_without_a_home(mixersweep: Command, here: Path) -> None:
    write_tree(here / "one", {"train": 4, "val": 2}, ("a", "b"), size=(32, 32))
    assert mixersweep("plan", *prepared(mixersweep, "one"), *SMALL)[0] == 0


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["data", "list"], "--data-dir=~/.cache/mixersweep"),
        (["data", "prepare", "mnist"], "--data-dir=~/.cache/mixersweep"),
        (["train", "data=mnist", *SMALL], "data_dir=~/.cache/mixersweep"),
        (["plan", "runs_dir='~/runs'"], "runs_dir=~/runs"),
        (["train", "run_dir=~/runs/x"], "run_dir=~/runs/x"),
        (["plan", "--config-dir=~/own", "experiment=mine"], "--config-dir=~/own"),
        (["status", "~/runs"], "~/runs"),
        (["data", "prepare", "image_folder", "--root", "~nobody-of-this-name/x"], "data.root=~nobody-of-this-name/x"),
    ],
)
def test_what_needs_a_home_says_which_setting_helps(mixersweep: Command, words: list[str], setting: str) -> None:
    code, out, said = mixersweep(*words)
    assert (code, out) == (2, "")
    assert said.splitlines()[-1] == f"mixersweep: error: {setting}: {NO_HOME}"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_the_command_of_a_user_whom_nobody_knows(here: Path) -> None:
    become = "import os, runpy, sys; os.setgid(54321); os.setuid(54321); sys.argv = ['mixersweep', '--version']"
    code = f"import mixersweep.cli; {become}; runpy.run_module('mixersweep', run_name='__main__')"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env={"PYTHONPATH": root}
    )
    assert done.stdout.startswith("mixersweep "), done.stderr
