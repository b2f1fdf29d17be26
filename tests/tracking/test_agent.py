"""``train`` under the real ``wandb sweep`` and ``wandb agent``, which talk to a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixersweep.compose import config_of
from mixersweep.errors import INTERRUPTED, RunStopped
from mixersweep.paths import config_dir
from mixersweep.runs.files import read_json
from tests.speed import HANGS
from tests.tracking.loopback import Loopback
from tests.tracking.training import KEY, Training, epochs, everything, make

BIN = Path(sys.executable).parent
SWEEP = config_dir() / "wandb" / "sweep.yaml"
SMALL = {"connections": 1000, "depth": 1, "epochs": 2, "batch_size": 1500, "threads": 1, "tracking.timeout": 60}


def wandb(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [BIN / "wandb", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr + everything(tmp_path / "runs")
    return done


def train(tmp_path: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "mixersweep", "train", *(f"{k}={v}" for k, v in SMALL.items()), *arguments]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def agent(tmp_path: Path, server: Loopback, *runs: tuple[str, dict[str, Any]], places: str = "me/lab") -> str:
    """Make the sweep of the file as it stands, hand out these runs, and let an agent work until there are no more."""
    made = wandb(tmp_path, "sweep", "--entity", places.split("/")[0], "--project", places.split("/")[1], str(SWEEP))
    (name,) = server.sweeps
    assert f"wandb agent {places}/{name}" in made.stdout + made.stderr
    server.sweeps[name].left = [(identity, {**SMALL, **values}) for identity, values in runs]
    return wandb(tmp_path, "agent", f"{places}/{name}").stderr


def test_the_sweep_file_is_of_settings_that_there_are() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    for model in sweep["parameters"]["model"]["values"]:
        for width in sweep["parameters"]["width"]["values"]:
            chosen = {"model": model, "width": width, "optim.lr": sweep["parameters"]["optim.lr"]["min"]}
            fixed = {key: spec["value"] for key, spec in sweep["parameters"].items() if "value" in spec}
            assert chosen.keys() | fixed.keys() == sweep["parameters"].keys()
            config_of([f"{key}={value}" for key, value in {**chosen, **fixed}.items()])
    assert sweep["metric"]["name"] == "validation_accuracy"


@pytest.mark.slow
def test_an_agents_run_has_its_id_and_one_that_is_done_replays_its_metrics(tmp_path: Path, server: Loopback) -> None:
    train(tmp_path, "model=pk", "optim.lr=0.1", "tracking=none")
    (finished,) = (tmp_path / "runs").glob("[!.]*")
    runs = [("abc12345", {"model": "pk", "optim.lr": 0.1}), ("def67890", {"model": "sw_mlp", "optim.lr": 0.05})]
    agent(tmp_path, server, *runs)
    assert set(server.runs) == {"abc12345", "def67890"}
    for identity, values in runs:
        stored = server.runs[identity]
        assert (stored.first("sweep"), stored.first("project"), stored.first("entity")) == ("sweep0", "lab", "me")
        assert (epochs(stored.received), stored.exit_code) == ([1, 2], 0)
        assert stored.summary["validation_accuracy"] == stored.rows[-1]["validation_accuracy"]
        assert values.items() <= stored.config.items()
    assert stored.first("displayName").startswith("sw_mlp-")
    assert len([*(tmp_path / "runs").glob("[!.]*")]) == 2
    result = json.loads((finished / "result.json").read_text())
    assert server.runs["abc12345"].summary["test_accuracy"] == result["test_accuracy"]
    assert read_json(finished / "tracking.json") == {"id": "abc12345", "project": "lab", "entity": "me"}
    assert server.sweeps["sweep0"].heartbeats


def test_an_agents_run_goes_on_under_its_id_and_place_without_it(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(make(tmp_path, "tracking.project=mine"))
    with monkeypatch.context() as started:
        agents = {"SWEEP_ID": "sweep0", "RUN_ID": "abc12345", "PROJECT": "lab", "ENTITY": "me"}
        for name, value in agents.items():
            started.setenv(f"WANDB_{name}", value)
        training.run(range(2), ends=RunStopped("", INTERRUPTED))
    training.run(range(2, 4))
    assert training.said == []
    assert set(server.runs) == {"abc12345"}
    stored = server.runs["abc12345"]
    assert (epochs(stored.received), stored.exit_code) == ([0, 1, 2, 3], 0)
    assert {(upsert["project"], upsert["entity"]) for upsert in stored.upserts} == {("lab", "me")}
