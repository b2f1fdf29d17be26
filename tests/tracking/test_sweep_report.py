"""``mixersweep wandb report`` and what ``train -m`` leaves in W&B, with the real client against a server here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixersweep.runs.files import read_json, write_json
from tests.report.sweeps import write_sweep
from tests.speed import HANGS
from tests.tracking.loopback import Loopback, StoredRun
from tests.tracking.training import KEY, epochs, everything

SMALL = ["connections=1000", "depth=1", "epochs=2", "batch_size=1500", "threads=1", "tracking.timeout=60"]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mixersweep", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert KEY not in done.stdout + done.stderr + everything(tmp_path / "runs")
    return done


def write(tmp_path: Path, name: str = "fig4", **settings: Any) -> Path:
    """A sweep that has ended, known by its file and not by what its runs remember."""
    runs = tmp_path / "runs"
    paths = write_sweep(runs, lambda model, width, seed: 0.7 + width / 10_000, seeds=(0, 1, 2), **settings)
    content = {"name": name, "experiment": "fig4_width", "command": "mixersweep train -m ..."}
    folder = runs / ".sweeps" / name
    folder.mkdir(parents=True)
    write_json(folder / "sweep.json", {**content, "runs": [path.name for path in paths.values()], "search_runs": []})
    return folder


def report_of(server: Loopback) -> StoredRun:
    (found,) = [stored for stored in server.runs.values() if stored.first("jobType") == "report"]
    return found


def test_a_report_has_figures_tables_and_statistics(tmp_path: Path, server: Loopback) -> None:
    folder = write(tmp_path)
    done = run(tmp_path, "wandb", "report", "fig4", "--project", "mine")
    assert done.returncode == 0, done.stderr
    stored = report_of(server)
    identity = read_json(folder / "tracking.json")["id"]
    assert done.stdout == f"{server.url}/me/mine/runs/{identity}\n"
    assert (stored.first("groupName"), stored.first("displayName")) == ("fig4", "report fig4")
    assert stored.first("tags") == ["report", "fig4_width"]
    assert (stored.config["experiment"], stored.config["runs"], stored.exit_code) == ("fig4_width", 27, 0)

    statistics = json.loads((folder / "report" / "statistics.json").read_text())
    assert stored.summary["answer"] == statistics["answer"]
    comparison = statistics["comparisons"][0]
    (trend,) = [row for row in comparison["trends"] if row["model"] == "sw_mlp"]
    assert stored.summary["trend/sw_mlp/rise"] == pytest.approx(trend["rise"])
    bounds = [stored.summary[f"trend/sw_mlp/interval_over_seeds_{end}"] for end in ("low", "high")]
    assert bounds == pytest.approx(trend["interval_over_seeds"])
    assert stored.summary["pair/s_mixer sw_mlp/p_holm"] == pytest.approx(comparison["pairs"][1]["p_holm"])

    (history,) = stored.rows
    figure = history["figures/width_vs_accuracy"]
    assert stored.files[figure["path"]] == (folder / "report" / "width_vs_accuracy.png").read_bytes()
    assert "95%" in figure["caption"] or "seeds" in figure["caption"]
    accuracy = json.loads(stored.files[history["tables/accuracy"]["path"]])
    shown = [dict(zip(accuracy["columns"], cells, strict=True)) for cells in accuracy["data"]]
    assert [row["test_accuracy"] for row in shown] == [row["test_accuracy"] for row in comparison["accuracy"]]
    assert [row["interval_over_seeds_low"] for row in shown] == [
        row["interval_over_seeds"][0] for row in comparison["accuracy"]
    ]
    assert len(json.loads(stored.files[history["tables/runs"]["path"]])["data"]) == 27
    page = (folder / "report" / "report.html").read_bytes()
    assert stored.files[history["report/page"]["path"]] == page
    assert server.artifact("report").files["report.html"] == page
    assert b"mixersweep wandb report fig4" in page


def test_the_same_sweep_has_one_report_with_nothing_of_an_earlier_one(tmp_path: Path, server: Loopback) -> None:
    folder = write(tmp_path)
    assert run(tmp_path, "wandb", "report", "fig4").returncode == 0
    assert "pair/s_mixer sw_mlp/p_holm" in report_of(server).summary
    sweep = read_json(folder / "sweep.json")
    write_json(folder / "sweep.json", {**sweep, "runs": [name for name in sweep["runs"] if "sw_mlp" not in name]})
    assert run(tmp_path, "wandb", "report", "fig4").returncode == 0
    stored = report_of(server)
    assert stored.summary["runs"] == 18
    assert "pair/s_mixer rp_s_mixer/p_holm" in stored.summary
    assert not [key for key in stored.summary if "sw_mlp" in key]
    assert len(stored.rows) == 2


def test_mistakes_and_dead_servers_are_one_line(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    unknown = run(tmp_path, "wandb", "report", "fig5")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "mixersweep: error: fig5: no such sweep in runs; the nearest is fig4\n"
    write_json(folder / "sweep.json", {**read_json(folder / "sweep.json"), "runs": []})
    empty = run(tmp_path, "wandb", "report", "fig4")
    assert (empty.returncode, empty.stderr) == (
        1,
        "mixersweep: error: fig4: none of its 0 runs in runs is completed\n",
    )
    write(tmp_path, "other", models=("pk",), widths=(1024,))
    monkeypatch.setenv("WANDB_API_KEY", "")
    without = run(tmp_path, "wandb", "report", "other")
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.endswith("there is no W&B API key here: `wandb login`, or WANDB_API_KEY\n")
    assert run(tmp_path, "wandb", "report", "other", "--where-online").returncode == 0
    assert server.seen == []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with monkeypatch.context() as wrong:
        wrong.setenv("WANDB_PROJECT", "api/key")
        refused = run(tmp_path, "wandb", "report", "other", "--where-online")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("mixersweep: error: W&B: WANDB_PROJECT=api/key: ")
    server.stop()
    dead = run(tmp_path, "wandb", "report", "other", "--timeout", "2")
    assert (dead.returncode, dead.stdout) == (1, "")
    assert dead.stderr.splitlines()[-1].startswith("mixersweep: error: W&B: ")


def test_a_sweep_groups_its_runs_and_ends_in_a_report(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SWEEP_ID": "sweep0", "RUN_ID": "abc12345"}.items():  # an agent's, which one run could take
        monkeypatch.setenv(f"WANDB_{name}", value)
    arguments = ["train", "-m", *SMALL, "model=pk,sw_mlp", "sweep.name=mine", "hydra.launcher.jobs=2"]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "W&B" in line]
    assert said == [f"mixersweep: W&B: {server.url}/me/mixersweep"]
    trained = [stored for stored in server.runs.values() if stored.first("jobType") == "train"]
    assert {stored.first("groupName") for stored in trained} == {"mine"}
    assert sorted(stored.first("tags")[0] for stored in trained) == ["pk", "sw_mlp"]
    assert [epochs(stored.received) for stored in trained] == [[1, 2]] * 2
    names = {stored.first("displayName") for stored in trained}
    assert names == {Path(line).parent.name for line in done.stdout.splitlines()}
    assert report_of(server).summary["runs_completed"] == 2
    assert not any(stored.first("sweep") for stored in server.runs.values())

    server.seen.clear()
    again = run(tmp_path, *arguments)
    assert (again.stdout, server.seen) == (done.stdout, [])
    off = run(tmp_path, *arguments, "seed=1", "model=pk", "tracking.report=false")
    assert off.returncode == 0
    assert len(server.runs) == 4


@pytest.mark.parametrize("limit", ["0", "60"])
def test_a_report_never_fails_a_sweep(tmp_path: Path, server: Loopback, limit: str) -> None:
    server.mode = "hang"
    arguments = ["train", "-m", *SMALL, "model=pk", "tracking.timeout=3", f"tracking.report_timeout={limit}"]
    done = run(tmp_path, *arguments, "sweep.name=mine")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("mixersweep: W&B: no report of the sweep (")
    assert said.endswith("; `mixersweep wandb report mine` sends it")
    assert ("not done within 0 s" in said) == (limit == "0")
