"""A sweep as people run it, 24 runs of three models on Fashion-MNIST, ends the same whatever carries it out or hits it.

Its twin on Slurm is ``tests/slurm``; by hand, the same with ``hydra/launcher=slurm`` behind it.
"""

import importlib.util
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mixersweep.runs import read_status
from tests.speed import wall
from tests.sweeps.commands import numbers, results, rows, run, start, states

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]

MODELS, WIDTHS, SEEDS = "s_mixer,rp_s_mixer,sw_mlp", "153,172,217,255", "0,1"
SETTINGS = ["data=fashion_mnist_10k", "connections=2**12", "depth=2", "match=mixer", "epochs=2", "batch_size=500"]
SWEEP = ["train", "-m", *SETTINGS, "threads=1", "device=cpu", "tracking=none", "sweep.name=trial"]
GRID = [f"model={MODELS}", f"width={WIDTHS}", f"seed={SEEDS}"]
RUNS, KILLED = 24, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> subprocess.CompletedProcess[str]:
    """The sweep through ``local``, in ``folder/runs``."""
    done = run(folder, *SWEEP, *GRID)
    assert done.returncode == 0, done.stderr
    assert len(results(done.stdout)) == len(numbers(folder / "runs")) == RUNS
    return done


def test_repeated_it_launches_nothing_and_returns_at_once(
    folder: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    began = time.perf_counter()
    again = run(folder, *SWEEP, *GRID)
    seconds = time.perf_counter() - began
    assert (again.returncode, again.stdout) == (0, undisturbed.stdout)
    assert "local:" not in again.stderr
    assert seconds < wall(3)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_through_ray_beside_a_run_that_diverges(folder: Path, undisturbed: object) -> None:
    grid = ",".join(f'{key}:"{values}"' for key, _, values in (setting.partition("=") for setting in GRID))
    diverges = "{model:s_mixer,width:255,seed:0,optim.lr:1e30}"
    ray = ["hydra/launcher=ray", "hydra.launcher.cpus_per_run=0.5", "runs_dir=ray"]
    done = run(folder, *SWEEP, *ray, f"sweep.grids=[{{{grid}}},{diverges}]")
    assert done.returncode == 1, done.stderr
    assert f"ray: {RUNS + 1} runs on this machine" in done.stderr
    assert f"{RUNS} completed, 1 diverged" in done.stderr and "Traceback" not in done.stderr
    assert numbers(folder / "ray") == numbers(folder / "runs")


@pytest.fixture(scope="module")
def one_by_one(folder: Path) -> Path:
    """The sweep by the packed engine, each run in a process of its own."""
    done = run(folder, *SWEEP, *GRID, "engine=packed", "hydra.launcher.pack=1", "runs_dir=one_by_one")
    assert done.returncode == 0, done.stderr
    return folder / "one_by_one"


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_in_packs_every_run_has_the_numbers_that_it_has_alone(launcher: str, folder: Path, one_by_one: Path) -> None:
    """Four programs a model, each with two seeds: twelve packs, through the same command."""
    if launcher == "ray":
        pytest.importorskip("ray")
    name = f"packed-{launcher}"
    done = run(folder, *SWEEP, *GRID, "engine=packed", f"hydra/launcher={launcher}", f"runs_dir={name}")
    assert done.returncode == 0, done.stderr
    assert f"{launcher}: {RUNS} runs in 12 packs" in done.stderr
    assert len(results(done.stdout)) == RUNS
    assert numbers(folder / name) == numbers(one_by_one)
    for path in (folder / name).glob("[!.]*-s*"):
        assert {file.name for file in path.iterdir()} == {file.name for file in (one_by_one / path.name).iterdir()}
        assert [row["epoch"] for row in rows(path)] == [1, 2]


def test_with_a_third_of_its_runs_killed_and_the_command_repeated(
    folder: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    runs, draw = folder / "killed", random.Random(0)
    chosen = draw.sample(results(undisturbed.stdout), KILLED)
    moments = {runs / record["name"]: draw.uniform(0, 0.8) * record["seconds"] for record in chosen}
    process = start(folder, *SWEEP, *GRID, "runs_dir=killed")
    killed: set[Path] = set()
    while process.poll() is None:
        for path in moments.keys() - killed:
            status = read_status(path)
            if status.is_alive and status.pid and time.time() - (status.since or 0) > moments[path]:
                with suppress(ProcessLookupError):
                    os.kill(status.pid, signal.SIGKILL)
                    killed.add(path)
        time.sleep(0.02)
    process.communicate()
    assert process.returncode == 1
    found = states(runs)
    left = {name for name, state in found.items() if state != "completed"}
    assert left == {path.name for path in killed}
    assert len(left) > KILLED // 2  # one may have been too fast for its moment

    done = run(folder, *SWEEP, *GRID, "runs_dir=killed")
    assert done.returncode == 0, done.stderr
    assert f"local: {len(left)} runs" in done.stderr
    assert numbers(runs) == numbers(folder / "runs")
    assert all([row["epoch"] for row in rows(runs / name)] == [1, 2] for name in found)
