"""A sweep as people run it, 24 runs of three models on Fashion-MNIST, ends the same whatever carries it out or hits it.

Its twin on Slurm is ``tests/slurm``; by hand, the same with ``hydra/launcher=slurm`` behind it.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mixersweep.runs import read_status
from tests.sweeps.commands import numbers, results, rows, run, start, states

pytestmark = pytest.mark.slow

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
    assert seconds < 3 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.skipif(shutil.which("ray") is None, reason="needs the extra ray")
def test_through_ray_beside_a_run_that_diverges(folder: Path, undisturbed: object) -> None:
    grid = ",".join(f'{key}:"{values}"' for key, _, values in (setting.partition("=") for setting in GRID))
    diverges = "{model:s_mixer,width:255,seed:0,optim.lr:1e30}"
    ray = ["hydra/launcher=ray", "hydra.launcher.cpus_per_run=0.5", "runs_dir=ray"]
    done = run(folder, *SWEEP, *ray, f"sweep.grids=[{{{grid}}},{diverges}]")
    assert done.returncode == 1, done.stderr
    assert f"ray: {RUNS + 1} runs on this machine" in done.stderr
    assert f"{RUNS} completed, 1 diverged" in done.stderr and "Traceback" not in done.stderr
    assert numbers(folder / "ray") == numbers(folder / "runs")


def test_with_a_third_of_its_runs_killed_and_the_command_repeated(folder: Path, undisturbed: object) -> None:
    runs, draw = folder / "killed", random.Random(0)
    process = start(folder, *SWEEP, *GRID, "runs_dir=killed")
    killed: set[Path] = set()
    while len(killed) < KILLED and process.poll() is None:
        time.sleep(draw.uniform(0, 2))
        going = [path.parent for path in sorted(runs.glob("[!.]*-s*/status.json")) if path.parent not in killed]
        held = {path: status.pid for path in going if (status := read_status(path)).alive}
        if held:
            path = draw.choice(list(held))
            with suppress(ProcessLookupError):
                os.kill(held[path] or 0, signal.SIGKILL)
                killed.add(path)
    process.communicate()
    assert (process.returncode, len(killed)) == (1, KILLED)
    found = states(runs)
    assert {path.name for path in killed} == {name for name, state in found.items() if state != "completed"}

    done = run(folder, *SWEEP, *GRID, "runs_dir=killed")
    assert done.returncode == 0, done.stderr
    assert f"local: {KILLED} runs" in done.stderr
    assert numbers(runs) == numbers(folder / "runs")
    assert all([row["epoch"] for row in rows(runs / name)] == [1, 2] for name in found)
