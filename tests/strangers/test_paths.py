"""Odd characters in paths: what a command prints can be typed."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from mixersweep.compose import config_of
from tests.data.layouts import write_tree
from tests.strangers.conftest import Command
from tests.strangers.test_images import SMALL, prepared

ODD = [
    "größe",
    "my data",
    "d(1)",
    "x=1",
    "a,b",
    "it's",
    'say "so"',
    "back\\slash\\",
    "${oc.env:X}",
    "[1]",
    "{a: b}",
    "50%",
    "~x",
    "*",
    "a#b",
    "&;$(true)",
]


@pytest.mark.parametrize("name", ODD)
def test_the_settings_of_a_folder_can_be_typed(mixersweep: Command, here: Path, name: str) -> None:
    write_tree(here / name, {"train": 1, "val": 1}, ("a", "b"), size=(32, 32))
    code, out, _ = mixersweep("data", "prepare", "image_folder", "--root", str(here / name))
    assert code == 0
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {out}"], capture_output=True, check=True)
    words = [word.decode() for word in shell.stdout.split(b"\0")[:-1]]
    assert words == shlex.split(out)
    assert config_of([*words, "image_size=32"]).data.root == str(here / name)


def test_such_a_run_trains_and_goes_on(mixersweep: Command, here: Path) -> None:
    write_tree(here / "größe, d(1)", {"train": 4, "val": 2}, ("ä", "b c"), size=(32, 32))
    words = prepared(mixersweep, "größe, d(1)")
    code, out, said = mixersweep("train", *words, *SMALL, 'runs_dir="läufe = (1)"')
    assert code == 0, said
    record = json.loads(Path(out.strip()).read_text())
    assert mixersweep("train", f"run_dir={Path(out.strip()).parent}")[0] == 0
    assert mixersweep("train", *record["overrides"])[1] == out


@pytest.mark.parametrize(
    ("word", "quoted"), [("data.root=größe", "'data.root=\"größe\"'"), ("runs_dir=a(b", "'runs_dir=\"a(b\"'")]
)
def test_a_text_that_hydra_cannot_read_is_told_quoted(mixersweep: Command, word: str, quoted: str) -> None:
    code, _, said = mixersweep("plan", word)
    assert code == 2
    assert said.endswith(f"; where that is one text, quote it for Hydra and for the shell: {quoted}\n")
    assert "Hydra" not in mixersweep("plan", *shlex.split(quoted), "data=fashion_mnist_10k")[2]
