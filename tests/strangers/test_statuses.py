"""``status.json`` as a crash, a full disk or another version leaves it: one run says so, the others go on."""

import json
from pathlib import Path

import pytest

from mixersweep.runs import Status, hold, read_status, set_status
from mixersweep.runs.listing import read_listed
from mixersweep.runs.state import State
from tests.strangers.conftest import Command
from tests.training.small import directory

QUICK = ("tracking=none", "epochs=1", "threads=1", "connections=4096", "depth=1", "device=cpu", "batch_size=1500")
DAMAGED = {
    "": "Expecting value: line 1 column 1 (char 0)",
    '{"state": "comp': "Unterminated string",
    "\x00\x00": "Expecting value",
    "[]": "it is no JSON object",
    "{}": "it names no state",
    '{"state": "dancing"}': "there is no state dancing",
    '{"state": ["running"]}': "there is no state ['running']",
}


@pytest.fixture
def runs(here: Path) -> list[Path]:
    return [directory(here / "runs", *QUICK, f"seed={seed}").path for seed in (0, 1)]


@pytest.mark.parametrize("content", DAMAGED)
def test_one_that_cannot_be_read_is_lost_and_says_so(runs: list[Path], mixersweep: Command, content: str) -> None:
    (runs[0] / "status.json").write_text(content)
    listed = read_listed(runs[0])
    assert listed is not None and listed.state == read_status(runs[0]).shown == State.LOST
    code, out, _ = mixersweep("status", "--json")
    shown = {line["name"]: line for line in map(json.loads, out.splitlines())}
    assert (code, shown[runs[1].name]["state"]) == (0, "planned")
    assert shown[runs[0].name]["error"].startswith(f"status.json cannot be read: {DAMAGED[content]}")


@pytest.mark.parametrize("words", [("retry", "--state", "lost", "runs"), ("cancel", "--state", "lost")])
def test_retry_and_cancel_mend_it(runs: list[Path], mixersweep: Command, words: tuple[str, ...]) -> None:
    (runs[0] / "status.json").write_text("")
    assert mixersweep(*words)[0] == 0
    wanted = State.PLANNED if words[0] == "retry" else State.CANCELLED
    assert [read_status(run).state for run in runs] == [wanted, State.PLANNED]


def test_a_sweep_goes_on(runs: list[Path], mixersweep: Command) -> None:
    for run, content in zip(runs, ("", '{"state": "planned", "mood": {"good": true}}'), strict=True):
        (run / "status.json").write_text(content)
    words = ("train", "-m", "seed=0,1", *QUICK, "hydra.launcher.jobs=1", "hydra.launcher.warm=false", "device=cpu")
    code, out, said = mixersweep(*words)
    assert code == 0, said
    assert len(out.splitlines()) == 2
    stored = json.loads((runs[1] / "status.json").read_text())
    assert (stored["state"], stored["mood"]) == ("completed", {"good": True})


def test_what_another_version_knows_is_kept(runs: list[Path]) -> None:
    path = runs[0] / "status.json"
    path.write_text(json.dumps({"state": "interrupted", "error": None, "mood": [1, 2]}))
    assert read_status(runs[0]) == Status(State.INTERRUPTED)
    set_status(runs[0], Status(State.PLANNED))
    assert json.loads(path.read_text())["mood"] == [1, 2]
    with hold(runs[0]):
        assert json.loads(path.read_text())["mood"] == [1, 2]
    assert json.loads(path.read_text())["mood"] == [1, 2]


def test_a_state_of_another_version_is_held_by_its_process(runs: list[Path]) -> None:
    with hold(runs[0]):
        path = runs[0] / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "state": "dancing"}))
        assert read_status(runs[0]).is_alive
    assert not read_status(runs[0]).is_alive


@pytest.mark.parametrize("file", ["result.json", "tracking.json"])
def test_another_file_that_cannot_be_read_is_one_line(runs: list[Path], mixersweep: Command, file: str) -> None:
    set_status(runs[0], Status(State.COMPLETED))
    (runs[0] / file).write_text("")
    words = ("train", *QUICK) if file == "result.json" else ("wandb", "sync", "runs")
    code, _, said = mixersweep(*words)
    assert code != 0 or file == "tracking.json"
    assert "Traceback" not in said
