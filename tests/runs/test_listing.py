"""Many run directories read at once: every state, what is broken, what is none, and how long it takes."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.runs import Origin, Run, RunDirectory, Status, hold, planned_record, set_status, solve
from mixersweep.runs.files import read_json
from mixersweep.runs.listing import Listed, listing, read_listed, value_names
from mixersweep.runs.record import KEYS
from mixersweep.runs.state import SHOWN, State
from mixersweep.runs.status import DEAD_AFTER
from tests.runs.synthetic import record_of, seeded, shapes, write_many, write_run
from tests.speed import here


@pytest.fixture(scope="module")
def run() -> Run:
    return solve(config_of(["model=sw_mlp", "width=700", "epochs=5"]), Origin(sweep="s", overrides=["model=sw_mlp"]))


def only(place: Path) -> Listed:
    (listed,) = listing([place])
    return listed


def test_a_new_directory_says_before_training_what_the_record_will(tmp_path: Path, run: Run) -> None:
    directory = RunDirectory.create(run, tmp_path)
    listed = only(tmp_path)
    assert (listed.path, listed.name, listed.state, listed.row, listed.result) == (
        directory.path,
        run.name,
        "planned",
        None,
        None,
    )
    assert listed.planned == json.loads(json.dumps(planned_record(run)))
    assert list(listed.planned) == list(planned_record(run))
    assert listed.config["optim"]["lr"] == 0.1
    assert list(listed.record) == list(KEYS)
    assert listed.record["width"] == 700
    assert listed.record["test_accuracy"] is None


def test_a_directory_from_before_planned_json_reads_the_same(tmp_path: Path, run: Run) -> None:
    directory = RunDirectory.create(run, tmp_path)
    new = only(tmp_path)
    (directory.path / "planned.json").unlink()
    old = only(tmp_path)
    assert old == new
    assert old.planned == new.planned


def test_a_completed_run_has_its_record_and_every_value_has_a_known_name(tmp_path: Path, run: Run) -> None:
    path = write_run(tmp_path, run, accuracy=0.75)
    listed = only(tmp_path)
    assert listed.state == "completed"
    assert listed.result == read_json(path / "result.json") == record_of(run, 0.75)
    assert listed.record == record_of(run, 0.75)
    values = listed.values()
    assert set(values) <= set(value_names())
    assert (values["optim.lr"], values["model"], values["model.mask"]) == (0.1, "sw_mlp", "exact")
    assert (values["epoch"], values["state"], values["mean_fan_in"]) == (5, "completed", run.architecture.mean_fan_in)


@pytest.mark.parametrize("state", [s for s in State if s.is_stored and s is not State.COMPLETED])
def test_every_other_stored_state_is_listed_with_its_last_row(tmp_path: Path, run: Run, state: str) -> None:
    write_run(tmp_path, run, state, epoch=3, error="why")
    listed = only(tmp_path)
    assert listed.state == ("lost" if state == "running" else state)
    assert listed.state in SHOWN
    assert listed.row is not None and listed.row["epoch"] == 3
    assert listed.status.error == "why"
    assert listed.values()["epoch"] == 3
    assert listed.values()["error"] == "why"


def test_running_here_and_elsewhere_is_told_from_lost(tmp_path: Path, run: Run) -> None:
    directory = RunDirectory.create(run, tmp_path)
    with hold(directory.path):
        assert only(tmp_path).state == "running"
    now = time.time()
    elsewhere = Status(State.RUNNING, "far/away", 1, 0.0, since=now, heartbeat=now)
    set_status(directory.path, elsewhere)
    assert only(tmp_path).state == "running"
    set_status(directory.path, dataclasses.replace(elsewhere, pid=2, heartbeat=now - DEAD_AFTER - 1))
    assert only(tmp_path).state == "lost"
    assert only(tmp_path).values()["host"] == "far"


def test_the_last_rows_are_whole_rows_however_long_and_whatever_a_crash_left(tmp_path: Path, run: Run) -> None:
    path = write_run(tmp_path, run, "interrupted")
    metrics = path / "metrics.jsonl"
    for rows in (1, 2, 50):
        lines = [json.dumps({"epoch": n, "time": float(n), "padding": "x" * 300}) + "\n" for n in range(1, rows + 1)]
        metrics.write_text("".join(lines) + '{"epoch": 99, "ti')
        listed = only(tmp_path)
        assert listed.row is not None and listed.row["epoch"] == rows
        assert [row["epoch"] for row in listed.rows] == list(range(rows - len(listed.rows) + 1, rows + 1))
        assert len(listed.rows) >= min(rows, 2)
    metrics.write_text(json.dumps({"epoch": 1, "padding": "x" * 50_000}) + "\n")
    assert only(tmp_path).row == {"epoch": 1, "padding": "x" * 50_000}
    for nothing in ("", '{"epoch": 1', '{"epoch": 1, "padding": "' + "x" * 5000):
        metrics.write_text(nothing)
        assert only(tmp_path).row is None


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("planned.json", "{}", "planned.json is incomplete: 'schema_version'"),
        ("planned.json", '{"schema_version": 1, "fingerprint": "", "name": "", "config": 3}', "is incomplete"),
        ("planned.json", "\xff", "planned.json cannot be read"),
        ("result.json", None, "is completed, but result.json is missing"),
        ("result.json", '{"name": "x"', "result.json cannot be read"),
        ("config.yaml", None, "config.yaml is missing"),
    ],
)
def test_a_broken_directory_is_listed_with_its_reason(
    tmp_path: Path, run: Run, file: str, content: str | None, reason: str
) -> None:
    path = write_run(tmp_path, run)
    good = write_run(tmp_path, seeded(run, 1))
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content.encode("latin-1"))
    broken, whole = sorted(listing([tmp_path]), key=lambda listed: listed.path == good)
    assert (broken.state, broken.name, broken.path) == ("broken", path.name, path)
    assert broken.reason is not None and reason in broken.reason
    assert set(broken.values()) <= set(value_names())
    assert broken.record["name"] == path.name
    assert (whole.path, whole.state) == (good, "completed")


def test_a_broken_config_or_metrics_file_is_told(tmp_path: Path, run: Run) -> None:
    path = write_run(tmp_path, run, "failed", epoch=2)
    (path / "metrics.jsonl").write_text("not json\n")
    assert "metrics.jsonl" in (only(tmp_path).reason or "")
    (path / "metrics.jsonl").unlink()
    (path / "planned.json").unlink()
    for content, reason in [("{", "cannot be read"), ("3", "is not of a run"), ("a: 1", "is incomplete")]:
        (path / "config.yaml").write_text(content)
        assert reason in (only(tmp_path).reason or "")


def test_what_is_no_run_directory_is_passed_over(tmp_path: Path, run: Run) -> None:
    (tmp_path / ".sweeps" / "fig4").mkdir(parents=True)
    (tmp_path / f".{run.name}.0123abcd.tmp").mkdir()
    (tmp_path / f".{run.name}.0123abcd.tmp" / "config.yaml").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("mine: 1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert list(listing([tmp_path])) == []
    assert read_listed(tmp_path / "nowhere") is None
    path = write_run(tmp_path, run)
    assert [listed.path for listed in listing([tmp_path])] == [path]


def test_places_may_be_several_and_runs_themselves_and_each_run_comes_once(tmp_path: Path, run: Run) -> None:
    first = write_run(tmp_path / "a", run)
    second = write_run(tmp_path / "b", seeded(run, 1), "failed")
    assert [listed.path for listed in listing([tmp_path / "b", first, tmp_path / "a", second])] == [second, first]


def test_a_place_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        list(listing([tmp_path / "nowhere"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: Not a directory"):
        list(listing([tmp_path / "file"]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_broken(tmp_path: Path, run: Run) -> None:
    path = write_run(tmp_path, run)
    (path / "status.json").chmod(0)
    assert only(tmp_path).reason == "status.json cannot be read: Permission denied"


def test_ten_thousand_runs_are_read_in_seconds(tmp_path: Path) -> None:
    """The promise is 3 s for all of status; here a fifth of the runs, in CPU time, with room for a slow machine."""
    states = ("completed", "failed", "running", "planned", "completed")
    paths = write_many(tmp_path, 2000, lambda number: states[number % 5], shapes(widths=(900, 1024)))
    for path in paths[::500]:
        assert RunDirectory.open(path).run.name == path.name  # they are as training leaves them
    began = time.process_time()
    listed = list(listing([tmp_path]))
    assert time.process_time() - began < here(3.0 / 5 * 2)
    assert sorted(one.path for one in listed) == sorted(paths)
    assert [one.state for one in listed].count("completed") == 800
