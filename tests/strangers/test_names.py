"""Names that people give, and where they lead."""

import json
from pathlib import Path

import pytest

from mixersweep.sweeps.expand import expand
from tests.strangers.conftest import Command


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("../../up", "up"),
        ("a/b", "a-b"),
        ("/tmp/elsewhere", "tmp-elsewhere"),
        ("..", "mine"),
        (".hidden", "hidden"),
        ("a\\\\b", "a-b"),
    ],
)
def test_a_sweep_whose_name_leads_elsewhere_is_refused(
    mixersweep: Command, here: Path, verb: str, name: str, nearest: str
) -> None:
    code, out, said = mixersweep(verb, "-m", f"sweep.name='{name}'", "seed=0,1")
    assert (code, out) == (2, "")
    assert said.startswith("mixersweep: error: sweep.name=") and said.endswith(f"the nearest is {nearest}\n")
    assert list(here.rglob("*")) == []


@pytest.mark.parametrize("name", ["x" * 300, "ö" * 101])
def test_a_name_too_long_for_a_folder_is_refused(mixersweep: Command, name: str) -> None:
    code, _, said = mixersweep("plan", "-m", f"sweep.name='{name}'", "seed=0,1")
    assert code == 2
    assert f"...: is of {len(name.encode())} bytes; at most 200" in said


@pytest.mark.parametrize("name", ["x" * 200, "größe 2", "a..b", "a+b (1), 50%", "-"])
def test_other_names_are_folders(here: Path, name: str) -> None:
    expansion = expand([f"sweep.name='{name}'", "seed=0,1"], multirun=True)
    assert expansion.folder.parent == here / "runs" / ".sweeps"
    expansion.folder.mkdir(parents=True)


def test_a_report_of_a_name_that_leads_elsewhere_is_of_no_sweep(mixersweep: Command, here: Path) -> None:
    (here / "runs/.sweeps/mine").mkdir(parents=True)
    (here / "runs/.sweeps/mine/sweep.json").write_text(json.dumps({"name": "mine", "runs": []}))
    (here / "sweep.json").write_text(json.dumps({"name": "up", "runs": []}))
    code, _, said = mixersweep("wandb", "report", "../..")
    assert code == 2 and "../..: no such sweep in runs" in said
    assert sorted(path.name for path in here.iterdir()) == ["runs", "sweep.json"]
