"""``train`` through the front door beside a W&B that works, fails or is not there: its results are the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mixersweep.runs import read_status
from mixersweep.tracking.processes import GRACE
from tests.speed import HANGS, wall
from tests.sweeps.commands import numbers, rows
from tests.tracking.loopback import Loopback
from tests.tracking.training import KEY, epochs, eventually, everything, offline_of, run_id_of

pytestmark = pytest.mark.flaky(reruns=1)
SMALL = ["model=pk", "connections=1000", "depth=1", "batch_size=1500", "threads=1"]


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mixersweep", "train", *SMALL, *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **pipes)


def train(tmp_path: Path, *arguments: str) -> tuple[Path, str]:
    """Train to the end; the run directory and what was said."""
    process = start(tmp_path, *arguments)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    (run_dir,) = [Path(line).parent for line in out.splitlines()]
    assert KEY not in out + err + everything(run_dir)
    return run_dir, err


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to without W&B."""
    folder = tmp_path_factory.mktemp("untracked")
    train(folder, "epochs=2", "tracking=none")
    return numbers(folder / "runs")


@pytest.mark.parametrize("weather", ["ok", "stop", "error", "hang", "no key"])
def test_the_record_is_the_same_in_any_weather(
    tmp_path: Path, server: Loopback, untracked: dict[str, Any], weather: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weather == "stop":
        server.stop()
    if weather == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    server.mode = weather
    timeout = 60 if weather in ("ok", "no key") else 2
    run_dir, said = train(tmp_path, "epochs=2", f"tracking.timeout={timeout}")
    late = time.time() - (run_dir / "result.json").stat().st_mtime
    assert numbers(tmp_path / "runs") == untracked
    assert read_status(run_dir).state == "completed"
    assert ("W&B: not fully mirrored" in said) == (weather not in ("ok", "no key"))
    if weather == "ok":
        assert epochs(server.runs[run_id_of(run_dir)].received) == [1, 2]
    elif weather == "no key":
        written = [r["history"]["item"]["epoch"] for r in offline_of(run_dir) if r["type"] == "history"]
        assert written == [1, 2]
    else:
        assert late < timeout + wall(1), "a second to end in"


def test_killed_and_taken_up_again_every_epoch_is_there_once(tmp_path: Path, server: Loopback) -> None:
    arguments = ["epochs=100", "checkpoint.every=7", "tracking.timeout=60"]
    process = start(tmp_path, *arguments)
    eventually(lambda: any(len(run.lines) >= 10 for run in server.runs.values()))
    process.kill()
    process.communicate()
    (run_dir,) = (tmp_path / "runs").glob("[!.]*")
    sent = len(server.runs[run_id_of(run_dir)].lines)
    assert len(rows(run_dir)) < 100
    _, said = train(tmp_path, *arguments)
    assert "going on after epoch" in said and "W&B" not in said
    stored = server.runs[run_id_of(run_dir)]
    assert sent >= 10
    assert epochs(stored.received) == [*range(1, 101)]
    assert stored.exit_code == 0


@pytest.mark.slow
def test_a_dead_server_costs_fifteen_seconds_at_most(tmp_path: Path, server: Loopback) -> None:
    run_dir, _ = train(tmp_path, "epochs=1", "tracking=none", "runs_dir=alone")
    leaving = time.time() - (run_dir / "result.json").stat().st_mtime
    server.mode = "die"
    run_dir, said = train(tmp_path, "epochs=10")
    assert server.mode == "hang" and server.runs
    late = time.time() - (run_dir / "result.json").stat().st_mtime
    assert late < 15 + GRACE + 3 * max(leaving, 0.3), "more than a slow machine takes"
    assert "W&B: not fully mirrored" in said
    assert len(rows(run_dir)) == 10
