"""``--config-dir``: experiments, and other choices, in a directory of the user's own."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks
from tests.sweeps.commands import SMALL, results, run, states

EXPERIMENT = """# @package _global_
hydra:
  mode: MULTIRUN
defaults:
  - override /optim: slow
sweep:
  grids:
    - {model: "s_mixer,sw_mlp", width: 100}
  over: {seed: 0}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "optim").mkdir()
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    (tmp_path / "own" / "optim" / "slow.yaml").write_text("defaults:\n  - sgd\n  - _self_\nlr: 0.01\n")
    return tmp_path / "own"


def test_an_experiment_of_ones_own_runs_and_its_runs_do_not_need_the_file(tmp_path: Path, own: Path) -> None:
    flags = ["--config-dir", "own", "experiment=mine", *SMALL]
    planned = run(tmp_path, "plan", *flags, "--json")
    assert planned.returncode == 0, planned.stderr
    done = run(tmp_path, "train", *flags)
    assert done.returncode == 0, done.stderr
    records = results(done.stdout)
    assert [record["name"] for record in records] == [json.loads(line)["name"] for line in planned.stdout.splitlines()]
    assert {(record["experiment"], record["sweep"]) for record in records} == {("mine", "mine")}
    command = json.loads((tmp_path / "runs" / ".sweeps" / "mine" / "sweep.json").read_text())["command"]
    again = run(tmp_path, *shlex.split(command)[1:])
    assert (again.returncode, again.stdout) == (0, done.stdout)
    told = shlex.join(["mixersweep", "train", *records[0]["overrides"]])
    one = run(tmp_path, *shlex.split(told)[1:])
    assert (one.returncode, one.stdout) == (0, done.stdout.splitlines(keepends=True)[0]), one.stderr

    shutil.rmtree(own)
    for path, name in zip(done.stdout.splitlines(), states(tmp_path / "runs"), strict=True):
        Path(path).unlink()
        (tmp_path / "runs" / name / "status.json").unlink()
        lost = run(tmp_path, "train", f"run_dir=runs/{name}")
        assert lost.returncode == 0, lost.stderr
    assert "lr: 0.01" in (tmp_path / "runs" / name / "config.yaml").read_text()


def test_the_experiment_that_the_page_shows_is_one(tmp_path: Path) -> None:
    (shown,) = blocks(ROOT / "docs" / "sweeps.md", "yaml")
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(f"{shown}\n")
    planned = run(tmp_path, "plan", "--config-dir", "own", "experiment=mine")
    assert planned.returncode == 0, planned.stderr
    assert "12 runs: 12 new" in planned.stdout


def test_a_single_run_with_a_choice_of_ones_own(tmp_path: Path, own: Path) -> None:
    done = run(tmp_path, "train", f"--config-dir={own}", "optim=slow", *SMALL)
    assert done.returncode == 0, done.stderr
    (record,) = results(done.stdout)
    assert record["overrides"] == [f"--config-dir={own}", "optim=slow", *SMALL]


def test_the_lists_have_the_choices_of_ones_own(tmp_path: Path, own: Path) -> None:
    done = run(tmp_path, "train", "--config-dir", "own", "experiment=min")
    assert done.returncode == 2
    assert "experiment=min: no such experiment; the nearest is mine" in done.stderr


def test_a_directory_that_cannot_be(tmp_path: Path, own: Path) -> None:
    def refusal(*arguments: str) -> str:
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "--config-dir=nowhere: no such directory" in refusal("train", "--config-dir", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "--config-dir=empty: has no files such as experiment/NAME.yaml" in refusal("plan", "--config-dir=empty")
    (own / "optim" / "sgd.yaml").write_text("name: sgd\n")
    assert "optim=sgd is a choice already; call your file otherwise" in refusal("plan", "--config-dir=own")
    assert "--config-name: the settings are train.yaml's" in refusal("train", "-m", "--config-name=other", "seed=0,1")
