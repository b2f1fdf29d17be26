"""``mixersweep wandb sync`` with the real W&B client against a server on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixersweep.errors import PREEMPTED, RunDiverged, RunStopped
from mixersweep.runs import RunDirectory, Status, set_status
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State
from mixersweep.runs.status import this_host
from tests.speed import HANGS
from tests.tracking.loopback import Loopback
from tests.tracking.training import KEY, Training, epochs, eventually, everything, make, processes, result, row, run_id


def sync(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mixersweep", "wandb", "sync", str(tmp_path / "runs"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert KEY not in done.stdout + done.stderr
    for run_dir in (tmp_path / "runs").glob("[!.]*"):
        assert KEY not in everything(run_dir)
    return done


def written(tmp_path: Path, seed: int, rows: range = range(3), state: str = "completed", *more: str) -> RunDirectory:
    """A run that was trained without W&B."""
    directory = make(tmp_path, "tracking=none", f"seed={seed}", *more)
    for epoch in rows:
        directory.append_row(row(epoch))
    if state == "completed":
        directory.write_result(result(directory))
    set_status(directory.path, Status(State(state), host="elsewhere", pid=1, heartbeat=1.0))
    return directory


def names(stdout: str) -> set[str]:
    return {Path(line).name for line in stdout.splitlines()}


def test_offline_runs_go_up_once(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.delenv("WANDB_API_KEY")
        training = Training(make(tmp_path))
        training.run(range(3), ends=RunStopped("stop", PREEMPTED))
        training.run(range(3, 5))
    directory = training.directory
    assert [*directory.path.glob("wandb/offline-run-*")]
    header_only = directory.path / "wandb" / f"offline-run-20260101_000000-{run_id(directory)}"
    header_only.mkdir()
    (header_only / f"run-{run_id(directory)}.wandb").write_bytes(b":W&B\xbe\xef\x00")
    never = [written(tmp_path, 1), written(tmp_path, 2, range(2), "failed")]
    written(tmp_path, 3, range(0), "planned")
    assert server.seen == []

    done = sync(tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(done.stdout) == {directory.run.name, *(run.run.name for run in never)}
    assert done.stderr == "mixersweep: W&B: 3 uploaded, 0 there already, 0 not uploaded, 1 with nothing yet\n"
    stored = server.runs[run_id(directory)]
    assert [{key: r[key] for key in row(0)} for r in stored.rows] == [row(epoch) for epoch in range(5)]
    assert (stored.exit_code, server.runs[run_id(never[1])].exit_code) == (0, 1)
    assert stored.first("groupName") == "s1"
    assert server.artifact("run", run_id(directory)).files.keys() == {"config.yaml", "result.json", "manifest"}
    assert not [*directory.path.glob("wandb/*run-*")]

    server.seen.clear()
    again = sync(tmp_path)
    assert (again.returncode, again.stdout, server.seen) == (0, "", [])
    assert again.stderr == "mixersweep: W&B: 0 uploaded, 3 there already, 0 not uploaded, 1 with nothing yet\n"

    forced = sync(tmp_path, "--again", "--where", "seed=1")
    assert names(forced.stdout) == {never[0].run.name}
    assert epochs(server.runs[run_id(never[0])].received) == [0, 1, 2], "no row twice"


@pytest.mark.flaky(reruns=1)
def test_what_a_killed_client_lost_is_rebuilt(tmp_path: Path, server: Loopback) -> None:
    training = Training(make(tmp_path, "tracking.checkpoint=true"))
    directory = training.directory
    (directory.path / "checkpoint.pt").write_bytes(b"weights")

    def kill() -> None:
        eventually(lambda: server.runs and len(server.runs[run_id(directory)].lines) == 2)
        for process in processes(directory):
            process.kill()
        directory.append_row(row(2))

    training.run(range(2), during=kill)
    assert len(training.said) == 1
    done = sync(tmp_path)
    assert (done.returncode, names(done.stdout)) == (0, {directory.run.name})
    stored = server.runs[run_id(directory)]
    assert (epochs(stored.received), stored.exit_code) == ([0, 1, 2], 0)
    assert {**result(directory), "environment": 0}.items() > {"test_loss": stored.summary["test_loss"]}.items()
    assert server.artifact("run").files["checkpoint.pt"] == b"weights"

    server.seen.clear()
    directory.append_row(row(3))  # as if it had been trained on
    set_status(directory.path, Status(State.INTERRUPTED))
    assert sync(tmp_path).returncode == 0
    assert (epochs(stored.received), stored.exit_code) == ([0, 1, 2, 3], 130)


def test_what_the_mirror_sent_is_there_already(tmp_path: Path, server: Loopback) -> None:
    done, diverged = Training(make(tmp_path)), Training(make(tmp_path, "seed=1"))
    done.run(range(2))
    diverged.run(range(1), ends=RunDiverged("loss"))
    server.seen.clear()
    again = sync(tmp_path)
    assert (again.returncode, again.stdout, server.seen) == (0, "", [])
    other = sync(tmp_path, "--project", "other")
    assert other.returncode == 0
    assert len(names(other.stdout)) == 2
    assert server.runs[run_id(done.directory)].upserts[-1]["project"] == "other"


@pytest.mark.parametrize("failure", ["stop", "error", "hang"])
@pytest.mark.flaky(reruns=1)
def test_a_server_that_does_not_answer_ends_it_soon(tmp_path: Path, server: Loopback, failure: Any) -> None:
    for seed in range(6):
        written(tmp_path, seed)
    if failure == "stop":
        server.stop()
    server.mode = failure
    done = sync(tmp_path, "--timeout", "2", "--jobs", "2")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[-1] == "mixersweep: W&B: 0 uploaded, 0 there already, 6 not uploaded"
    assert sum("not tried, since another run failed" in line for line in lines) >= 3


def test_says_what_went_up_and_what_did_not(tmp_path: Path, server: Loopback) -> None:
    good, changed, torn = written(tmp_path, 0), written(tmp_path, 1), written(tmp_path, 2)
    config = changed.path / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 128", "batch_size: 64"))
    (torn.path / "result.json").unlink()
    training = written(tmp_path, 3, range(1), "running")
    status = Status(State.RUNNING, host=this_host(), pid=1, pid_started=_started(1), heartbeat=1.0)
    set_status(training.path, status)
    done = sync(tmp_path)
    assert (done.returncode, names(done.stdout)) == (1, {good.run.name})
    assert f"{changed.run.name}: not uploaded, run_dir={changed.path}: config.yaml was changed by hand" in done.stderr
    assert f"{torn.run.name}: not uploaded, is broken: is completed, but result.json is missing" in done.stderr
    assert done.stderr.endswith("1 uploaded, 0 there already, 2 not uploaded, 1 in training, mirrored meanwhile\n")
    again = sync(tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert set(server.runs) == {run_id(good)}


def test_files_that_are_refused_are_said_and_tried_again(tmp_path: Path, server: Loopback) -> None:
    directory = written(tmp_path, 0)
    server.mode = "lose_files"
    done = sync(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "config and result were not uploaded as an artifact" in done.stderr
    server.mode = "refuse"
    assert "refused by W&B" in sync(tmp_path).stderr
    server.mode = "ok"
    done = sync(tmp_path)
    assert (done.returncode, names(done.stdout)) == (0, {directory.run.name})
    assert epochs(server.runs[run_id(directory)].received) == [0, 1, 2]


def test_deleted_runs_and_lost_ids_get_new_ones(tmp_path: Path, server: Loopback) -> None:
    deleted, lost = written(tmp_path, 0), written(tmp_path, 1)
    before = run_id(deleted)
    server.deleted.add(before)
    (lost.path / "tracking.json").unlink()
    done = sync(tmp_path, "--timeout", "4")
    assert done.returncode == 0, done.stderr
    assert before not in server.runs
    assert set(server.runs) == {run_id(deleted), run_id(lost)}
    for directory in (deleted, lost):
        assert run_id(directory).startswith(f"{directory.run.fingerprint[:16]}-")


def test_no_key_is_a_mistake_in_one_line(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    written(tmp_path, 0)
    done = sync(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mixersweep: error: there is no W&B API key here: `wandb login`, or WANDB_API_KEY\n"


@pytest.mark.flaky(reruns=1)
def test_an_interrupt_leaves_no_process_and_the_next_goes_on(tmp_path: Path, server: Loopback) -> None:
    directories = [written(tmp_path, seed) for seed in range(3)]
    server.mode = "hang"
    command = [sys.executable, "-m", "mixersweep", "wandb", "sync", "runs", "--jobs", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as process:
        eventually(lambda: (directories[0].path / "wandb").glob("run-*") and len(_family(process.pid)) > 2)
        family = _family(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HANGS)
    assert process.returncode == 130, said
    eventually(lambda: not [p for p in family if p.is_running() and p.status() != "zombie"])
    server.mode = "ok"
    assert len(names(sync(tmp_path).stdout)) == 3
    assert all(epochs(server.runs[run_id(d)].received) == [0, 1, 2] for d in directories)


def test_runs_frozen_before_a_setting_existed(tmp_path: Path, server: Loopback) -> None:
    directory = written(tmp_path, 0)
    stored = read_json(directory.path / "planned.json")
    for name in ("checkpoint", "report", "report_timeout"):
        del stored["config"]["tracking"][name]
    write_json(directory.path / "planned.json", stored)
    assert sync(tmp_path).returncode == 0


def _family(pid: int) -> list[Any]:
    import psutil

    return psutil.Process(pid).children(recursive=True)


def _started(pid: int) -> float:
    import psutil

    return psutil.Process(pid).create_time()
