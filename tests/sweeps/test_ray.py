"""The launcher ``ray`` on a Ray of its own: real processes, judged by what stands in the run directories."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.speed import HANGS
from tests.sweeps.commands import SMALL, alive, environment, family, numbers, results, rows, run, start, states, when

pytestmark = pytest.mark.flaky(reruns=1)
RAY = ["hydra/launcher=ray", "device=cpu"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


@needs_ray
@pytest.mark.slow
def test_a_sweep_through_ray_is_the_same_as_any_other(tmp_path: Path) -> None:
    grids = "sweep.grids=[{seed:'0,1,2'},{seed:8,optim.lr:1e30}]"
    arguments = ["train", "-m", *SMALL, "sweep.name=same", "hydra.launcher.cpus_per_run=0.5", *RAY]
    done = run(tmp_path, *arguments, grids)
    assert done.returncode == 1, done.stderr
    assert [record["seed"] for record in results(done.stdout)] == [0, 1, 2]
    assert "ray: 4 runs on this machine" in done.stderr
    assert "1 diverged" in done.stderr and "Traceback" not in done.stderr
    local = run(tmp_path, "train", "-m", *SMALL, "sweep.name=same", "device=cpu", "seed=0,1,2", "runs_dir=local")
    assert local.returncode == 0, local.stderr
    assert numbers(tmp_path / "runs") == numbers(tmp_path / "local")
    again = run(tmp_path, *arguments, "seed=0,1,2")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "ray:" not in again.stderr


@needs_ray
@pytest.mark.slow
def test_ctrl_c_stops_the_runs_and_ends_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mixersweep", "train", "-m", *SMALL, "epochs=4000", "seed=0,1,2", *RAY]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [*command, "hydra.launcher.cpus_per_run=0.4"],
        cwd=tmp_path,
        env=environment(tmp_path),
        text=True,
        start_new_session=True,
        **pipes,
    )
    when(lambda: [path for path in (tmp_path / "runs").glob("*-s*") if rows(path)], process)
    started = family(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert set(states(tmp_path / "runs").values()) <= {"interrupted", "planned"}
    assert "interrupted" in states(tmp_path / "runs").values()
    psutil.wait_procs(started, timeout=HANGS)
    assert not alive(started)


@needs_ray
@pytest.mark.slow
def test_a_command_that_is_killed_leaves_runs_that_go_on(tmp_path: Path) -> None:
    arguments = ["train", "-m", *SMALL, "epochs=200", "seed=0", *RAY]
    process = start(tmp_path, *arguments)
    (path,) = when(lambda: [path for path in (tmp_path / "runs").glob("*-s*") if len(rows(path)) >= 2], process)
    (trains,) = [child for child in family(process.pid) if path.name in " ".join(child.cmdline())]
    process.kill()
    process.communicate()
    trains.wait(timeout=HANGS)
    assert states(tmp_path / "runs")[path.name] == "preempted"
    done = run(tmp_path, "train", "-m", *SMALL, "epochs=200", "seed=0", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in rows(path)] == list(range(1, 201))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.launcher.cpus_per_run=1.5"], "hydra.launcher.cpus_per_run=1.5: a fraction of one, or a whole number"),
        (["+hydra.launcher.gpus=1"], "hydra.launcher.gpus=1: no such setting; there are name, address"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, "train", "-m", *SMALL, *RAY, "seed=0,1", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from mixersweep.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "-m", *SMALL, *RAY, "seed=0,1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "needs Ray; pip install 'mixersweep[ray]'" in done.stderr
    assert set(states(tmp_path / "runs").values()) == {"planned"}
