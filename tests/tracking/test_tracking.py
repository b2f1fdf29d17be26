"""The mirror with the real W&B client, offline and against a server on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixersweep import tracking
from mixersweep.errors import INTERRUPTED, PREEMPTED, RunDiverged, RunStopped
from mixersweep.runs import hold, planned_record
from tests.tracking.loopback import Loopback
from tests.tracking.training import (
    KEY,
    PROBLEM,
    Training,
    epochs,
    eventually,
    gone,
    make,
    offline,
    offline_rows,
    processes,
    result,
    row,
    run_id,
)


def test_none_starts_nothing(tmp_path: Path) -> None:
    training = Training(make(tmp_path, "tracking=none"))
    training.run(range(2), during=lambda: processes(training.directory) == [] or pytest.fail("a process"))
    assert training.said == []
    assert not (training.directory.path / "wandb").exists()


def test_training_process_never_imports_wandb() -> None:
    command = "import sys, mixersweep.tracking; assert not {'wandb', 'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_without_key_every_row_is_in_one_offline_file(tmp_path: Path) -> None:
    training = Training(make(tmp_path))
    training.run(range(3), ends=RunStopped("stop", PREEMPTED))
    assert epochs(offline_rows(training.directory)) == [0, 1, 2]
    training.run(range(3, 5))
    assert training.said == []
    rows = offline_rows(training.directory)
    assert [{key: r[key] for key in row(0)} for r in rows] == [row(epoch) for epoch in range(5)]
    records = {record["type"]: record for record in offline(training.directory)}
    assert records["exit"]["exit"].get("exit_code", 0) == 0
    assert str(tmp_path / "home") not in (training.directory.path / "wandb" / "mirror.log").read_text()


def test_probes_go_with_the_row_of_their_epoch(tmp_path: Path) -> None:
    training = Training(make(tmp_path))
    training.directory.append_probe({"epoch": 1, "spectrum_largest/blocks.0": 2.5, "seconds": 0.1})
    training.run(range(3))
    inside = [{key: value for key, value in r.items() if "probes" in key} for r in offline_rows(training.directory)]
    assert inside == [{}, {"probes/spectrum_largest/blocks.0": 2.5, "probes/seconds": 0.1}, {}]


def test_disabled_by_the_environment(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    training = Training(make(tmp_path))
    training.run(range(2))
    assert training.said == []
    assert server.seen == []
    assert {file.name for file in (training.directory.path / "wandb").iterdir()} == {".lock", "mirror.log"}


def test_online_has_rows_config_summary_and_files(
    tmp_path: Path, home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = home / ".netrc"
    netrc.write_text(f"machine {server.url.removeprefix('http://')} login user password {KEY}\n")
    netrc.chmod(0o600)
    training = Training(make(tmp_path, "tracking.project=mine", "tracking.entity=us", "optim.lr=0.25"))
    directory, architecture = training.directory, training.directory.run.architecture
    training.run(range(3), during=lambda: eventually(lambda: server.runs and server.runs[run_id(directory)].lines))
    assert training.said == []
    stored = server.runs[run_id(directory)]
    assert [{key: r[key] for key in row(0)} for r in stored.rows] == [row(epoch) for epoch in range(3)]
    assert stored.exit_code == 0
    first = stored.upserts[0]
    assert (first["project"], first["entity"], first["displayName"]) == ("mine", "us", directory.run.name)
    assert (first["groupName"], first["jobType"], first["tags"]) == (
        "s1",
        "train",
        ["s_mixer", "fashion_mnist_10k", "fig4"],
    )
    config = stored.config
    assert config["model"] == "s_mixer"
    assert config["optim"] == "sgd"
    assert config["optim.lr"] == 0.25
    assert config["width"] == config["effective_width"] == architecture.width
    assert planned_record(directory.run).items() <= config.items()
    assert not {"tracking", "runs_dir", "data_dir"} & set(config)
    record = {key: value for key, value in result(directory).items() if isinstance(value, int | float | str)}
    assert record.items() <= stored.summary.items()
    assert stored.summary["effective_width"] == architecture.width
    assert "environment" not in stored.summary
    assert [r["_timestamp"] for r in stored.rows] == [row(epoch)["time"] for epoch in range(3)]
    files = server.artifact("run", run_id(directory)).files
    assert files.keys() == {"config.yaml", "result.json", "manifest"}
    assert files["result.json"] == (directory.path / "result.json").read_bytes()
    assert set(stored.files) == {"config.yaml", "wandb-summary.json"}
    assert not [*directory.path.glob("wandb/*run-*")], "what is at W&B whole needs no files here"
    assert not [request for request in server.seen if request.startswith("/")], "nothing about the machine"


@pytest.mark.parametrize(
    ("ends", "exit_code"),
    [(RunStopped("", PREEMPTED), 75), (RunStopped("", INTERRUPTED), 130), (RunDiverged("loss"), 1)],
    ids=["preempted", "interrupted", "diverged"],
)
def test_how_a_run_ended(tmp_path: Path, server: Loopback, ends: BaseException, exit_code: int) -> None:
    training = Training(make(tmp_path))
    training.run(range(2), ends=ends)
    stored = server.runs[run_id(training.directory)]
    assert (epochs(stored.rows), stored.exit_code, stored.preempting) == ([0, 1], exit_code, exit_code == PREEMPTED)
    assert training.said == []


@pytest.mark.flaky(reruns=1)
def test_each_epoch_arrives_once_after_the_mirror_is_killed(tmp_path: Path, server: Loopback) -> None:
    training = Training(make(tmp_path))
    directory = training.directory

    def kill_then_go_on() -> None:
        eventually(lambda: server.runs and len(server.runs[run_id(directory)].lines) == 2)
        for process in processes(directory)[:1]:
            process.kill()
        directory.append_row(row(2))

    training.run(range(2), during=kill_then_go_on, ends=RunStopped("", INTERRUPTED))
    assert training.said == [f"{PROBLEM} (its process ended with code -9); the run directory is complete"]
    training.run(range(3, 5))
    stored = server.runs[run_id(directory)]
    assert epochs(stored.rows) == [0, 1, 2, 3, 4]
    assert (stored.exit_code, len(training.said)) == (0, 1)


def test_runs_of_one_process_are_runs_of_their_own(tmp_path: Path, server: Loopback) -> None:
    one, other = Training(make(tmp_path)), Training(make(tmp_path, "seed=1"))
    one.run(range(2), during=lambda: other.run(range(3)))
    assert (one.said, other.said) == ([], [])
    assert epochs(server.runs[run_id(one.directory)].received) == [0, 1]
    assert epochs(server.runs[run_id(other.directory)].received) == [0, 1, 2]


def test_deleted_run_gets_another_id(tmp_path: Path, server: Loopback) -> None:
    directory = make(tmp_path, "tracking.timeout=7")
    refused = run_id(directory)
    server.deleted.add(refused)
    training = Training(directory)
    training.run(range(2), during=lambda: eventually(lambda: server.runs))
    drawn = run_id(directory)
    assert drawn != refused
    assert drawn.rpartition("-")[0] == directory.run.fingerprint[:16]
    assert list(server.runs) == [drawn]
    assert epochs(server.runs[drawn].rows) == [0, 1]
    assert training.said == []


@pytest.mark.flaky(reruns=1)
def test_server_down_from_the_start_leaves_a_file_to_sync(tmp_path: Path, server: Loopback) -> None:
    server.stop()
    training = Training(make(tmp_path, "tracking.timeout=4"))
    training.run(range(2), during=lambda: eventually(lambda: [*training.directory.path.glob("wandb/offline-run-*")]))
    assert training.delay < 5
    assert epochs(offline_rows(training.directory)) == [0, 1]
    (said,) = training.said
    assert said.startswith(PROBLEM)
    assert "wandb sync" in said


@pytest.mark.parametrize("failure", ["stop", "error", "hang", "refuse"])
@pytest.mark.flaky(reruns=1)
def test_server_fails_in_the_middle(tmp_path: Path, server: Loopback, failure: str) -> None:
    training = Training(make(tmp_path, "tracking.timeout=4"))
    directory = training.directory

    def fail() -> None:
        eventually(lambda: server.runs and server.runs[run_id(directory)].lines)
        if failure == "stop":
            server.stop()
        server.mode = failure  # type: ignore[assignment]
        directory.append_row(row(1))

    training.run(range(1), during=fail)
    assert training.delay < 5
    (said,) = training.said
    assert said.startswith(PROBLEM)
    assert directory.status().state == "completed"
    assert epochs(directory.rows()) == [0, 1]


@pytest.mark.parametrize("mode", ["error", "hang"])
@pytest.mark.flaky(reruns=1)
def test_server_never_answers(tmp_path: Path, server: Loopback, mode: Any) -> None:
    server.mode = mode
    training = Training(make(tmp_path, "tracking.timeout=1"))
    training.run(range(2))
    assert training.delay < 3
    assert training.said[0].startswith(PROBLEM)


@pytest.mark.flaky(reruns=1)
def test_interrupt_while_finishing_leaves_no_process(tmp_path: Path, server: Loopback) -> None:
    server.mode = "hang"
    directory, other = make(tmp_path), make(tmp_path, "seed=1")
    with hold(directory.path), hold(other.path):
        mirror = tracking.start([directory, other], print)
        eventually(lambda: len(processes(directory)) > 1)
    family = processes(directory)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            mirror.finish()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert gone(family)


def test_no_process_to_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    training = Training(make(tmp_path))
    training.run(range(1))
    (said,) = training.said
    assert said.startswith("W&B: no mirror")


TRAINS_AND_HANGS = """
import sys, time
from pathlib import Path
from mixersweep import tracking
from mixersweep.runs import RunDirectory, hold
directory = RunDirectory.open(Path(sys.argv[1]))
with hold(directory.path):
    tracking.start([directory], print)
    directory.append_row({"epoch": 0, "time": 1.7e9, "train_loss": 1.0})
    time.sleep(100)
"""


@pytest.mark.flaky(reruns=1)
def test_mirror_ends_by_itself_when_the_training_is_killed(tmp_path: Path, server: Loopback) -> None:
    directory = make(tmp_path)
    with subprocess.Popen([sys.executable, "-c", TRAINS_AND_HANGS, directory.path]) as training:
        try:
            eventually(lambda: server.runs and server.runs[run_id(directory)].lines)
            family = [*processes(directory)]
            directory.append_row({"epoch": 1, "time": 1.7e9, "train_loss": 0.5})
        finally:
            training.kill()
    eventually(lambda: gone(family), 30)
    stored = server.runs[run_id(directory)]
    assert (epochs(stored.rows), stored.exit_code) == ([0, 1], 1)
