"""Several runs of one training, mirrored by one process with the real W&B client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixersweep.errors import RunDiverged
from mixersweep.runs import RunDirectory
from mixersweep.tracking.identity import read_uploaded
from tests.tracking.loopback import Loopback, StoredRun
from tests.tracking.training import Pack, epochs, eventually, make, offline_rows, processes, row, run_id


def several(tmp_path: Path, count: int, *overrides: str) -> list[RunDirectory]:
    return [make(tmp_path, f"seed={seed}", *overrides) for seed in range(count)]


def stored(server: Loopback, directory: RunDirectory) -> StoredRun:
    return server.runs[run_id(directory)]


def sent(server: Loopback, *directories: RunDirectory) -> bool:
    """Whether rows of all these runs have come."""
    return all(run_id(d) in server.runs and stored(server, d).lines for d in directories)


def offline_files(directory: RunDirectory) -> list[Path]:
    return [*directory.path.glob("wandb/offline-run-*")]


def test_a_run_ends_at_its_own_end_and_one_that_was_deleted_changes_no_other(tmp_path: Path, server: Loopback) -> None:
    one, early, deleted = runs = several(tmp_path, 3, "tracking.timeout=7")
    server.deleted.add(run_id(deleted))
    with Pack(*runs) as pack:
        pack.append(range(2))
        eventually(lambda: sent(server, *runs))
        pack.end(early, RunDiverged("loss"))
        eventually(lambda: stored(server, early).exit_code == 1)
        assert (stored(server, one).exit_code, stored(server, deleted).exit_code) == (None, None)
        pack.append(range(2, 4))
        eventually(lambda: len(stored(server, one).lines) == 4)
    assert pack.said == []
    assert [epochs(stored(server, run).received) for run in runs] == [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3]]
    assert [stored(server, run).exit_code for run in runs] == [0, 1, 0]
    assert [stored(server, run).first("displayName") for run in runs] == [run.run.name for run in runs]
    assert server.deleted.isdisjoint(server.runs)
    for run in runs:
        uploaded = read_uploaded(run.path)
        assert uploaded is not None and uploaded.id == run_id(run)
        assert not [*run.path.glob("wandb/*run-*")]
    assert {artifact.run for artifact in server.artifacts} == {run_id(one), run_id(deleted)}


def test_each_run_has_its_own_settings_and_without_tracking_none_at_all(tmp_path: Path, server: Loopback) -> None:
    projects = ["tracking.project=a", "tracking.project=b", "tracking=none"]
    runs = [make(tmp_path, f"seed={seed}", project) for seed, project in enumerate(projects)]
    with Pack(*reversed(runs)) as pack:
        pack.append(range(1))
        eventually(lambda: sent(server, *runs[:2]))
    assert pack.said == []
    assert [stored(server, run).first("project") for run in runs[:2]] == ["a", "b"]
    assert not (runs[2].path / "wandb").exists()
    assert set(server.runs) == {run_id(run) for run in runs[:2]}


def test_of_several_runs_none_is_the_agents(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_RUN_ID", "abc12345")
    runs = several(tmp_path, 2)
    with Pack(*runs) as pack:
        pack.append(range(1))
        eventually(lambda: sent(server, *runs))
    assert set(server.runs) == {run_id(run) for run in runs}
    assert not [run for run in server.runs.values() if run.first("sweep")]


@pytest.mark.parametrize("failure", ["refused", "silent"])
def test_a_run_that_is_not_taken_holds_up_no_other(tmp_path: Path, server: Loopback, failure: str) -> None:
    one, bad, other = runs = several(tmp_path, 3, "tracking.timeout=12")
    getattr(server, failure).add(run_id(bad))
    with Pack(*runs) as pack:
        pack.append(range(2))
        eventually(lambda: sent(server, one, other))
        pack.end(bad, RunDiverged("loss"))
        log = bad.path / "wandb" / "mirror.log"
        eventually(lambda: log.exists() and "W&B: " in log.read_text())
        pack.append(range(2, 3))
        eventually(lambda: len(stored(server, one).lines) == len(stored(server, other).lines) == 3)
    reason = {"refused": "refused by W&B", "silent": "no answer within 10 s"}[failure]
    (said,) = pack.said
    assert said.startswith(f"W&B: 1 of 3 runs not fully mirrored ({bad.run.name}: {reason}")
    assert said.endswith("`mixersweep wandb sync` sends it); the run directories are complete")
    assert [read_uploaded(run.path) is None for run in runs] == [False, True, False]
    assert [stored(server, run).exit_code for run in (one, other)] == [0, 0]


def test_one_that_cannot_be_opened_is_in_a_file_when_the_others_are_through(tmp_path: Path, server: Loopback) -> None:
    one, denied = runs = several(tmp_path, 2)
    server.denied.add(run_id(denied))
    with Pack(*runs) as pack:
        pack.append(range(2))
        eventually(lambda: sent(server, one))
    (said,) = pack.said
    assert said.startswith(f"W&B: 1 of 2 runs not fully mirrored ({denied.run.name}: ")
    assert epochs(offline_rows(denied)) == [0, 1]
    assert (epochs(stored(server, one).received), stored(server, one).exit_code) == ([0, 1], 0)
    assert not offline_files(one)


def test_without_key_each_run_has_its_own_file(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    with Pack(*runs) as pack:
        pack.append(range(2))
        pack.end(runs[1], RunDiverged("loss"))
        pack.append(range(2, 3))
    assert pack.said == []
    assert [epochs(offline_rows(run)) for run in runs] == [[0, 1, 2], [0, 1], [0, 1, 2]]
    assert [{key: r[key] for key in row(0)} for r in offline_rows(runs[2])] == [row(epoch) for epoch in range(3)]


@pytest.mark.parametrize("failure", ["stop", "error", "hang"])
def test_nobody_answers(tmp_path: Path, server: Loopback, failure: Any) -> None:
    runs = several(tmp_path, 3, "tracking.timeout=4")
    if failure == "stop":
        server.stop()
    server.mode = failure
    with Pack(*runs) as pack:
        pack.append(range(2))
        eventually(lambda: all(offline_files(run) for run in runs))
    assert pack.delay < 5
    assert [epochs(offline_rows(run)) for run in runs] == [[0, 1]] * 3
    (said,) = pack.said
    assert said.startswith(f"W&B: 3 of 3 runs not fully mirrored ({runs[0].run.name}: ")


@pytest.mark.parametrize("failure", ["stop", "error", "hang"])
def test_the_server_fails_in_the_middle(tmp_path: Path, server: Loopback, failure: Any) -> None:
    runs = several(tmp_path, 3, "tracking.timeout=8")
    with Pack(*runs) as pack:
        pack.append(range(1))
        eventually(lambda: sent(server, *runs))
        if failure == "stop":
            server.stop()
        server.mode = failure
        pack.append(range(1, 2))
    assert pack.delay < 9
    (said,) = pack.said
    assert said.startswith("W&B: 3 of 3 runs not fully mirrored (")
    assert [run.status().state for run in runs] == ["completed"] * 3


def test_eight_runs_are_one_process_and_one_of_the_clients(tmp_path: Path, server: Loopback) -> None:
    runs = several(tmp_path, 8)
    with Pack(*runs) as pack:
        pack.append(range(1))
        eventually(lambda: sent(server, *runs))
        mirrors = [p for p in psutil.Process().children(recursive=True) if "mixersweep.tracking" in p.cmdline()]
        below = [child for mirror in mirrors for child in mirror.children(recursive=True)]
    assert pack.said == []
    assert len(mirrors) == 1
    assert len(below) <= 1, "the client's, wandb-core"
    assert [stored(server, run).exit_code for run in runs] == [0] * 8


@pytest.mark.flaky(reruns=1)
def test_a_mirror_that_was_killed_is_said_of_all_its_runs_but_those_that_had_ended(
    tmp_path: Path, server: Loopback
) -> None:
    early, *others = runs = several(tmp_path, 3)
    with Pack(*runs) as pack:
        pack.append(range(1))
        eventually(lambda: sent(server, *runs))
        pack.end(early)
        eventually(lambda: read_uploaded(early.path))
        log = early.path / "wandb" / "mirror.log"
        eventually(lambda: "W&B: " in log.read_text())
        for process in processes(early):
            process.kill()
    name = others[0].run.name
    why = f"({name}: its process ended with code -9)"
    assert pack.said == [f"W&B: 2 of 3 runs not fully mirrored {why}; the run directories are complete"]


def test_more_runs_than_a_command_line_takes(tmp_path: Path) -> None:
    """What the process is told goes through its stdin, whatever its length."""
    from mixersweep.tracking import processes as of_others

    told, log = "x" * 5_000_000, tmp_path / "log"
    count = "import sys; print(len(sys.stdin.read()))"
    process, begins = of_others.start([sys.executable, "-c", count], log, told)
    assert (process.wait(), begins) == (0, 0)
    assert log.read_text() == f"{len(told)}\n"


def test_a_call_that_is_not_waited_for_any_longer() -> None:
    """In a process of its own, since it imports wandb."""
    script = """
import threading
from mixersweep.tracking.client import call_within
assert call_within(60, lambda: 1 + 1) == 2
for error in (ValueError("own"), TimeoutError("own")):
    def fail():
        raise error
    try:
        call_within(60, fail)
    except (ValueError, TimeoutError) as raised:
        assert raised is error
    else:
        raise AssertionError
try:
    call_within(0.2, threading.Event().wait)
except TimeoutError as late:
    assert str(late) == "no answer within 0.2 s"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
