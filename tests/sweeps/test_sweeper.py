"""``train -m`` through the front door: real processes, really killed, judged by what stands in the run directories."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mixersweep.runs.state import State
from tests.speed import HANGS, wall
from tests.sweeps.commands import SMALL, alive, family, numbers, results, rows, run, start, states, training, when


def test_a_sweep_trains_what_is_left_and_the_same_command_again_nothing(tmp_path: Path) -> None:
    arguments = ["train", "-m", *SMALL, "seed=1,0", "width=99"]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert [record["seed"] for record in results(done.stdout)] == [1, 0]
    (sweep,) = {record["sweep"] for record in results(done.stdout)}
    written = json.loads((tmp_path / "runs" / ".sweeps" / sweep / "sweep.json").read_text())
    assert written["runs"] == [record["name"] for record in results(done.stdout)]
    assert "epoch 1/1" in (tmp_path / "runs" / written["runs"][0] / "log.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("[!.]*-s*/*")}
    code = f"import sys; from mixersweep.cli import main; code = main({arguments!r}); assert code == 0\n"
    code += "heavy = {'torch', 'wandb', 'torchvision'} & set(sys.modules); assert not heavy, heavy"
    again = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("[!.]*-s*/*")} == before

    more = run(tmp_path, *arguments, "seed=0,2")  # shares a run with the other sweep
    assert more.returncode == 0
    assert "local: 1 runs" in more.stderr
    assert [record["seed"] for record in results(more.stdout)] == [0, 2]


def test_one_run_that_diverges_does_not_hide_the_others(tmp_path: Path) -> None:
    arguments = ["train", "-m", *SMALL, "optim.lr=1e30,0.1", "seed=0,1", "model=pk"]
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    assert len(results(done.stdout)) == 2
    assert sorted(states(tmp_path / "runs").values()) == ["completed", "completed", "diverged", "diverged"]
    told = [line for line in done.stderr.splitlines() if line.startswith("mixersweep: diverged ")]
    assert len(told) == 4 and all("not finite" in line for line in told)  # when it ends, and at the end
    assert "4 runs: 2 diverged, 2 completed" in done.stderr or "4 runs: 2 completed, 2 diverged" in done.stderr
    again = run(tmp_path, *arguments)
    assert (again.returncode, again.stdout) == (1, done.stdout)
    assert "local:" not in again.stderr


@pytest.mark.parametrize(("infeasible", "code"), [("refuse", 1), ("skip", 0)])
def test_points_without_a_network_end_nothing(tmp_path: Path, infeasible: str, code: int) -> None:
    arguments = ["train", "-m", *SMALL, "width=99,5000", "seed=0,1", f"sweep.infeasible={infeasible}"]
    done = run(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert len(results(done.stdout)) == 2
    told = [line for line in done.stderr.splitlines() if "width=5000: the widest mixer" in line]
    assert len(told) == 1
    assert told[0].endswith("(2 points)")


@pytest.mark.slow
@pytest.mark.flaky(reruns=1)
def test_a_sweep_killed_again_and_again_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    arguments = ["train", "-m", *SMALL, "epochs=20", "seed=0,1,2,3", "model=pk,sw_mlp"]
    undisturbed = run(tmp_path, *arguments, "runs_dir=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr

    runs = tmp_path / "runs"
    process = start(tmp_path, *arguments)  # first the launching process alone, its runs after it
    when(lambda: any(len(rows(path)) >= 5 for path in runs.glob("[!.]*-s*")), process)
    started = family(process.pid)
    process.kill()
    process.communicate()
    psutil.wait_procs(started, timeout=HANGS)
    assert not alive(started)
    assert set(states(runs).values()) <= {"completed", "preempted", "queued"}
    kept = {path.name: [row["time"] for row in rows(path)] for path in runs.glob("[!.]*-s*")}
    assert any(kept.values())

    process = start(tmp_path, *arguments)  # then everything at once
    when(lambda: sum(len(rows(path)) for path in runs.glob("[!.]*-s*")) > sum(map(len, kept.values())) + 8, process)
    for child in [psutil.Process(process.pid), *family(process.pid)]:
        child.kill()
    process.communicate()

    process = start(tmp_path, *arguments)  # then one run, and its supervisor
    supervisor, victim = when(lambda: training(process.pid), process)
    victim.kill()
    supervisor.kill()
    process.communicate()

    for _ in range(3):
        done = run(tmp_path, *arguments)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert len(results(done.stdout)) == 8
    for path in runs.glob("[!.]*-s*"):
        assert [row["epoch"] for row in rows(path)] == list(range(1, 21))
        assert [row["time"] for row in rows(path)][: len(kept.get(path.name, []))] == kept.get(path.name, [])
    assert numbers(runs) == numbers(tmp_path / "undisturbed")


@pytest.mark.parametrize(("engine", "warm", "others"), [("eager", "true", ""), ("packed", "false", " and 1 more")])
def test_processes_name_their_runs(tmp_path: Path, engine: str, warm: str, others: str) -> None:
    sweep = ["seed=0,1", "sweep.name=mine", f"engine={engine}", f"hydra.launcher.warm={warm}", "hydra.launcher.jobs=1"]
    process = start(tmp_path, "train", "-m", *SMALL, "epochs=4000", *sweep)
    paths = when(lambda: [path for path in sorted((tmp_path / "runs").glob("[!.]*-s*")) if rows(path)], process)
    shown = ps("args", json.loads((paths[0] / "status.json").read_text())["pid"])
    supervisor, train = when(lambda: training(process.pid), process)
    assert ps("args", supervisor.pid) == "mixersweep supervisor of mine"
    assert ps("comm", train.pid) == "mixersweep"
    process.terminate()
    process.communicate(timeout=HANGS)
    assert shown == f"mixersweep train {paths[0].name}{others}"


def ps(column: str, pid: int) -> str:
    return subprocess.run(["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


@pytest.mark.flaky(reruns=1)
def test_ctrl_c_stops_the_runs_in_good_order(tmp_path: Path) -> None:
    process = start(tmp_path, "train", "-m", *SMALL, "epochs=4000", "seed=0,1,2", "hydra.launcher.jobs=2")
    when(lambda: sum(len(rows(path)) > 0 for path in (tmp_path / "runs").glob("[!.]*-s*")) == 2, process)
    started = family(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert sorted(states(tmp_path / "runs").values()) == ["interrupted", "interrupted", "planned"]
    assert not alive(started)


@pytest.mark.flaky(reruns=1)
def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    process = start(tmp_path, "train", "-m", *SMALL, "epochs=4000", "seed=0,1")
    when(lambda: [path for path in (tmp_path / "runs").glob("[!.]*-s*") if rows(path)], process)
    started = family(process.pid)
    supervisor, _ = when(lambda: training(process.pid), process)
    for child in supervisor.children():
        child.suspend()  # so that they cannot stop in good order
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (130, ""), err
    assert not alive(started)


@pytest.mark.flaky(reruns=1)
def test_what_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    single = [*SMALL, "epochs=4000"]
    other = start(tmp_path, "train", *single, "seed=0")
    when(lambda: [path for path in (tmp_path / "runs").glob("[!.]*-s0-*") if rows(path)], other)
    process = start(tmp_path, "train", "-m", *single, "seed=0,1")
    when(lambda: [path for path in (tmp_path / "runs").glob("[!.]*-s1-*") if rows(path)], process)
    assert other.poll() is None
    (theirs,) = (tmp_path / "runs").glob("[!.]*-s0-*/status.json")
    assert json.loads(theirs.read_text())["pid"] == other.pid
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 75
    assert f"held by pid {other.pid}" in err
    assert other.poll() is None
    other.kill()
    other.communicate()


def test_how_a_run_is_executed_is_what_was_asked_last(tmp_path: Path) -> None:
    """A run directory that another command froze trains with the threads and the mirror of this one."""
    arguments = [*SMALL, "epochs=4000"]
    process = start(tmp_path, "train", *arguments, "threads=2", "tracking.project=old")
    when(lambda: [path for path in (tmp_path / "runs").glob("[!.]*-s0-*") if (path / "config.yaml").exists()], process)
    process.kill()
    process.communicate()
    (path,) = (tmp_path / "runs").glob("[!.]*-s0-*")
    assert "threads: 2" in (path / "config.yaml").read_text()
    (path / "checkpoint.pt").unlink(missing_ok=True)
    process = start(tmp_path, "train", "-m", *arguments, "seed=0", "tracking.project=new", "hydra.launcher.warm=false")
    when(lambda: rows(path), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANGS)
    frozen = (path / "config.yaml").read_text()
    assert "threads: 1\n" in frozen and "project: new" in frozen
    assert json.loads((path / "planned.json").read_text())["config"]["threads"] == 1


def test_a_search_chooses_the_learning_rate_of_the_runs_that_wait_for_it(tmp_path: Path) -> None:
    search = "sweep.search={lr:[0.0316,0.1],seeds:[100,101],grow:1}"
    arguments = ["train", "-m", *SMALL, "width=99", "seed=0,1", search, "sweep.name=searched"]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    (search_of,) = json.loads((tmp_path / "runs" / ".sweeps" / "searched" / "search.json").read_text())
    records = results(done.stdout)
    assert [record["seed"] for record in records] == [0, 1]
    chosen = f"optim.lr={search_of['lr']}"
    assert all(chosen in record["overrides"] for record in records)
    assert len(search_of["values"]) == 3  # the best of two is on an edge
    searched = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in search_of["runs"]]
    assert {record["sweep"] for record in searched} == {"searched/search"}
    assert {record["seed"] for record in searched} == {100, 101}
    again = run(tmp_path, *arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "local:" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.launcher.jobs=none"], "hydra.launcher.jobs=none: expects a whole number, at least 1, or auto"),
        (["+hydra.launcher.jbos=2"], "hydra.launcher.jbos=2: no such setting; the nearest is hydra.launcher.jobs"),
        (["hydra/launcher=basic"], "hydra/launcher=basic: the runs of a sweep take local"),
        (["hydra.launcher.gpus=99"], "hydra.launcher.gpus=99: there are"),
        (["device=cuda:1"], "device=cuda:1: the local launcher gives each run its GPU"),
    ],
    ids=str,
)
def test_a_launcher_that_cannot_be_is_a_user_mistake(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, "train", "-m", *SMALL, "seed=0,1", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert set(states(tmp_path / "runs").values()) <= {"planned"}


def test_an_experiment_is_many_runs_without_m(tmp_path: Path) -> None:
    small = ["connections=1000", "width=99", "depth=1", "epochs=1", "batch_size=1500", "threads=1", "tracking=none"]
    done = run(tmp_path, "train", "experiment=small_width", *small, "seed=3", "model.readout_dimension=32")
    assert done.returncode == 0, done.stderr
    records = results(done.stdout)
    assert [record["model"] for record in records] == ["s_mixer", "rp_s_mixer", "sw_mlp", "mlp"]
    assert {(record["experiment"], record["sweep"]) for record in records} == {("small_width", "small_width")}


def test_another_sweeper_of_hydra_still_trains_job_by_job(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "-m", *SMALL, "seed=1,0", "hydra/sweeper=basic")
    assert done.returncode == 0, done.stderr
    assert [record["seed"] for record in results(done.stdout)] == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_optuna_maximises_validation_accuracy_past_what_diverges(tmp_path: Path) -> None:
    arguments = [*SMALL, "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1"]
    study = ["hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=1", "optim.lr=choice(0.1,1e30)"]
    done = run(tmp_path, "train", "-m", *arguments, *study)
    assert done.returncode == 1, done.stderr  # a diverged trial is no completed run
    (best,) = (tmp_path / "runs" / ".sweeps").glob("*/optimization_results.yaml")
    accuracy = results(done.stdout)[0]["validation_accuracy"]
    assert f"optim.lr: 0.1\nbest_value: {accuracy}" in best.read_text()
    assert sorted(set(states(tmp_path / "runs").values())) == ["completed", "diverged"]


def test_a_repeated_sweep_of_24_returns_at_once(tmp_path: Path) -> None:
    """3 s are promised; the machine may be busy with other things."""
    from mixersweep.runs import RunDirectory, Status, set_status
    from mixersweep.sweeps.expand import expand

    arguments = [*SMALL, "model=s_mixer,rp_s_mixer,sw_mlp", "width=99", "seed=range(8)", f"runs_dir={tmp_path}/runs"]
    points = [point for point in expand(arguments, multirun=True).points if point.run]
    for point in points:
        assert point.run is not None
        directory = RunDirectory.create(point.run, tmp_path / "runs")
        directory.write_result({"test_accuracy": 0.5})
        set_status(directory.path, Status(State.COMPLETED))
    assert len(points) == 24
    began = time.perf_counter()
    done = run(tmp_path, "train", "-m", *arguments)
    seconds = time.perf_counter() - began
    assert len(done.stdout.splitlines()) == len(points)
    assert seconds < wall(3)
