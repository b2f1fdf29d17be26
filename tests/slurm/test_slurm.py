"""The launcher ``slurm`` against a real Slurm of two nodes: runs are disturbed halfway, and end as undisturbed ones."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import frozen, job_log, listed, missing, preempt, slurm, status, until
from tests.speed import HANGS
from tests.sweeps.commands import environment, numbers, results, rows, run, start, states

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.flaky(reruns=1),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 60
TINY = ["connections=1000", "depth=1", "batch_size=250", "threads=1", "tracking=none", "device=cpu", "sweep.name=tests"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus=1"]
HELD = ["hydra.launcher.wait=false", "hydra.launcher.sbatch={hold:true}"]
"""The jobs wait until they are released."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings of runs of a second or two."""
    folder = tmp_path_factory.mktemp("data")
    assert run(folder, "data", "prepare", "digits").returncode == 0
    data = ["data=digits", "augment=none", f"data_dir={folder / 'home' / '.cache' / 'mixersweep'}"]
    return ["train", "-m", *TINY, *data, f"epochs={EPOCHS}"]


@pytest.fixture(scope="session")
def undisturbed(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What all runs of these tests come to on this machine without Slurm, by name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(folder, *tiny, "seed=0,1,2,3").returncode == 0
    assert run(folder, *tiny, "epochs=2", "model=pk,sw_mlp", "seed=range(6)").returncode == 0
    found: dict[str, dict[str, object]] = numbers(folder / "runs")
    assert len(found) == 16
    return found


@pytest.fixture(autouse=True)
def idle() -> Iterator[None]:
    """A test that fails leaves no job and no node behind."""
    before = set(listed())
    yield
    for job in set(listed()) - before:
        slurm("scancel", job)


def same(runs_dir: Path, undisturbed: dict[str, dict[str, object]], count: int) -> bool:
    """Whether so many runs are completed, each epoch told once, with the numbers of undisturbed ones."""
    found = numbers(runs_dir)
    for name in found:
        told = [row["epoch"] for row in rows(runs_dir / name)]
        assert told == list(range(1, len(told) + 1))
    return len(found) == count and all(found[name] == undisturbed[name] for name in found)


def run_of(runs_dir: Path, seed: int) -> Path:
    return until(lambda: next((p.parent for p in runs_dir.glob(f"[!.]*-s{seed}-*/config.yaml")), None))


def two_time_limits(folder: Path, tiny: list[str]) -> str:
    """A run that Slurm's limit of a minute stops twice; returns what its job said."""
    process = start(folder, *tiny, *SLURM, "seed=3", "hydra.launcher.time=1", "hydra.launcher.grace=10")
    path = run_of(folder / "runs", 3)
    for time_out in (1, 2):
        with frozen(path, after=3 * time_out) as (job,):
            until(lambda n=time_out, j=job: job_log(folder / "runs", j).count("told to stop") >= n)  # type: ignore[misc]
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    return job_log(folder / "runs", job)


@pytest.fixture(scope="module")
def timed_out(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Future[str]]]:
    """Goes on beside the other tests: Slurm looks at time limits every half minute."""
    folder = tmp_path_factory.mktemp("timed_out")
    with ThreadPoolExecutor(1) as pool:
        scenario = pool.submit(two_time_limits, folder, tiny)
        until(listed)  # its job is there before any test, so that no test takes it for its own
        yield folder / "runs", scenario


def test_an_array_of_twelve_over_two_nodes(
    tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]], timed_out: object
) -> None:
    arguments = [*tiny, "epochs=2", "model=pk,sw_mlp", "seed=range(6)", *SLURM]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(results(done.stdout)) == 12
    assert same(tmp_path / "runs", undisturbed, 12)
    (record,) = (tmp_path / "runs").glob(".sweeps/tests/slurm/*.json")
    assert len(json.loads(record.read_text())["packs"]) == 12
    said = job_log(tmp_path / "runs", "*")
    assert "on node n1" in said and "on node n2" in said
    again = run(tmp_path, *arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "slurm:" not in again.stderr


def test_a_preempted_run_goes_on(tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]]) -> None:
    process = start(tmp_path, *tiny, *SLURM, "seed=0")
    path = run_of(tmp_path / "runs", 0)
    with frozen(path) as (job,):
        preempt(listed()[job])
        until(lambda: "told to stop" in job_log(tmp_path / "runs", job))
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert same(tmp_path / "runs", undisturbed, 1)
    assert "going on after epoch" in (path / "log.txt").read_text()
    assert job_log(tmp_path / "runs", job).count(f"job {job} requeued") == 1


def test_packs_of_a_sweep_on_two_nodes_are_the_runs_alone(tmp_path: Path, tiny: list[str]) -> None:
    """24 runs of three models: a pack of eight in each of three jobs."""
    sweep = [*tiny, "epochs=2", "model=pk,sw_mlp,s_mixer", "seed=range(8)", "engine=packed"]
    assert run(tmp_path, *sweep, "hydra.launcher.pack=1", "runs_dir=alone").returncode == 0
    done = run(tmp_path, *sweep, *SLURM)
    assert done.returncode == 0, done.stderr
    assert len(results(done.stdout)) == 24
    assert same(tmp_path / "runs", numbers(tmp_path / "alone"), 24)
    (record,) = (tmp_path / "runs").glob(".sweeps/tests/slurm/*.json")
    assert [len(pack) for pack in json.loads(record.read_text())["packs"]] == [8, 8, 8]
    for path in (tmp_path / "runs").glob("[!.]*-s*"):
        assert {file.name for file in path.iterdir()} == {
            file.name for file in (tmp_path / "alone" / path.name).iterdir()
        }


def test_a_pack_is_preempted_as_one_and_each_of_its_runs_is_what_it_is_alone(tmp_path: Path, tiny: list[str]) -> None:
    packed = [*tiny, "engine=packed", "seed=0,1,2"]
    assert run(tmp_path, *packed, "hydra.launcher.pack=1", "runs_dir=alone").returncode == 0
    process = start(tmp_path, *packed, *SLURM)
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1, 2)]
    with frozen(*paths) as jobs:
        assert len({status(path)["pid"] for path in paths}) == 1
        preempt(listed()[jobs[0]])
        until(lambda: "told to stop" in job_log(tmp_path / "runs", jobs[0]))
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert same(tmp_path / "runs", numbers(tmp_path / "alone"), 3)
    logs = [(path / "log.txt").read_text() for path in paths]
    assert "going on after epoch" in logs[0] and all(f"in one process with {paths[0].name}" in log for log in logs[1:])
    assert job_log(tmp_path / "runs", jobs[0]).count(f"job {jobs[0]} requeued") == 1


def test_runs_that_share_a_gpu_are_preempted_together(
    tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]]
) -> None:
    packed = ["hydra.launcher.runs_per_job=3", "hydra.launcher.gpus=1", "hydra.launcher.cpus=2"]
    process = start(tmp_path, *tiny, *SLURM, *packed, "seed=0,1,2")
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1, 2)]
    with frozen(*paths) as jobs:
        assert len(set(jobs)) == 1
        gpus = {psutil.Process(status(path)["pid"]).environ()["CUDA_VISIBLE_DEVICES"] for path in paths}
        assert len(gpus) == 1 and gpus <= {"0", "1"}
        preempt(listed()[jobs[0]])
        until(lambda: "told to stop" in job_log(tmp_path / "runs", jobs[0]))
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert same(tmp_path / "runs", undisturbed, 3)
    assert all("going on after epoch" in (path / "log.txt").read_text() for path in paths)
    assert job_log(tmp_path / "runs", jobs[0]).count(f"job {jobs[0]} requeued") == 1


def test_what_becomes_of_one_run_is_not_what_becomes_of_the_others(
    tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]]
) -> None:
    """One raises, one diverges, and the job of one is cancelled."""
    elsewhere = [setting for setting in tiny if setting != "data=digits"]
    grids = '{data:digits,seed:"0,1,2"},{data:digits,seed:8,optim.lr:1e30},{data:mnist,seed:9}'
    process = start(tmp_path, *elsewhere, *SLURM, f"sweep.grids=[{grids}]")
    path = run_of(tmp_path / "runs", 1)
    with frozen(path) as (job,):
        slurm("scancel", job)
        _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1, err
    found = {name.rpartition("-s")[2][0]: state for name, state in states(tmp_path / "runs").items()}
    assert found == {"0": "completed", "1": "preempted", "2": "completed", "8": "diverged", "9": "failed"}
    assert "DataMissing: data=mnist" in err and "diverged" in err
    assert "not requeued" in job_log(tmp_path / "runs", job)
    done = run(tmp_path, *tiny, *SLURM, "seed=0,1,2")
    assert done.returncode == 0, done.stderr
    assert "slurm: 1 runs in 1 jobs" in done.stderr
    assert same(tmp_path / "runs", undisturbed, 3)


def test_a_node_that_goes_down(tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]]) -> None:
    process = start(tmp_path, *tiny, *SLURM, "hydra.launcher.cpus=3", "seed=0,1")
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1)]
    with frozen(*paths) as jobs:
        nodes = [listed()[job] for job in jobs]
        assert sorted(nodes) == ["n1", "n2"]
        slurm("scontrol", "update", f"nodename={nodes[0]}", "state=down", "reason=tests")
        until(lambda: listed().get(jobs[0]) == "")
    try:
        _, err = process.communicate(timeout=HANGS)
        assert process.returncode == 0, err
    finally:
        slurm("scontrol", "update", f"nodename={nodes[0]}", "state=resume")
    assert f"on node {nodes[1]}" in job_log(tmp_path / "runs", jobs[0])
    assert "going on after epoch" in (paths[0] / "log.txt").read_text()
    assert same(tmp_path / "runs", undisturbed, 2)


def test_the_launching_process_killed_and_the_command_repeated(
    tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]]
) -> None:
    arguments = [*tiny, *SLURM, "hydra.launcher.array_parallelism=1"]
    process = start(tmp_path, *arguments, "seed=0,1,2")
    with frozen(run_of(tmp_path / "runs", 0)):
        process.kill()
        process.communicate()
        again = start(tmp_path, *arguments, "seed=0,1,2,3")
        until(lambda: len(list((tmp_path / "runs").glob(".sweeps/tests/slurm/*.json"))) == 2)
    _, err = again.communicate(timeout=HANGS)
    assert again.returncode == 0, err
    assert "slurm: 3 runs are in the queue already" in err and "slurm: 1 runs in 1 jobs" in err
    assert same(tmp_path / "runs", undisturbed, 4)
    assert all("going on" not in file.read_text() for file in (tmp_path / "runs").glob("*-s*/log.txt"))


def test_a_queued_job_does_not_see_edited_defaults(
    tmp_path: Path, tiny: list[str], undisturbed: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mixersweep", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "copy"))
    done = run(tmp_path, *tiny, *SLURM, *HELD, "seed=0")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    file = tmp_path / "copy" / "configs" / "optim" / "sgd.yaml"
    edited = file.read_text().replace("lr: 0.1", "lr: 0.2")
    assert edited != file.read_text()
    file.write_text(edited)
    path = run_of(tmp_path / "runs", 0)
    slurm("scontrol", "release", status(path)["job"])
    until(lambda: status(path)["state"] == "completed")
    assert same(tmp_path / "runs", undisturbed, 1)
    other = run(tmp_path, *tiny, *SLURM, *HELD, "seed=0")
    assert other.returncode == 0
    assert len(states(tmp_path / "runs")) == 2


def test_runs_are_cancelled_with_their_jobs(tmp_path: Path, tiny: list[str]) -> None:
    done = run(tmp_path, *tiny, *SLURM, *HELD, "seed=range(5)", "hydra.launcher.runs_per_job=2")
    assert done.returncode == 0, done.stderr
    assert "mixersweep status" in done.stderr
    paths = [run_of(tmp_path / "runs", seed) for seed in range(5)]
    jobs = [status(path)["job"] for path in paths]
    assert jobs[0] == jobs[1] != jobs[2] == jobs[3] != jobs[4]
    assert f"cancelled; job {jobs[0]} ends when" in run(tmp_path, "cancel", str(paths[0])).stdout
    assert f"cancelled, and job {jobs[0]}" in run(tmp_path, "cancel", str(paths[1])).stdout
    assert f"cancelled, and job {jobs[4]}" in run(tmp_path, "cancel", str(paths[4])).stdout
    until(lambda: not {jobs[0], jobs[4]} & set(listed()))
    assert run(tmp_path, "cancel", str(paths[3])).returncode == 0
    slurm("scontrol", "release", jobs[2])
    until(lambda: len(rows(paths[2])) >= 2)
    assert run(tmp_path, "cancel", str(paths[2])).returncode == 0
    until(lambda: jobs[2] not in listed())
    assert set(states(tmp_path / "runs").values()) == {"cancelled"}
    assert not rows(paths[3])


def test_more_runs_than_an_array_may_have(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, *SLURM, "seed=range(13)"]
    done = run(tmp_path, *arguments, *HELD)
    assert done.returncode == 0, done.stderr
    assert "slurm: 12 runs in 12 jobs" in done.stderr and "slurm: 1 runs in 1 jobs" in done.stderr
    again = run(tmp_path, *arguments, *HELD)
    assert (again.returncode, again.stdout) == (0, "")
    assert "slurm: 13 runs are in the queue already" in again.stderr
    waits = start(tmp_path, *arguments)
    assert waits.stderr is not None
    assert any("in the queue already" in line for line in waits.stderr)
    for job in {status(path)["job"].partition("_")[0] for path in (tmp_path / "runs").glob("*-s*")}:
        slurm("scancel", job)
    _, err = waits.communicate(timeout=HANGS)
    assert waits.returncode == 1, err
    assert set(states(tmp_path / "runs").values()) == {"planned"}


def test_a_run_that_its_time_limit_stops_twice(
    timed_out: tuple[Path, "Future[str]"], undisturbed: dict[str, dict[str, object]]
) -> None:
    runs_dir, scenario = timed_out
    said = scenario.result(timeout=HANGS)
    assert said.count("preempted by SIGUSR2") >= 2
    assert "requeued 2 times before" in said
    assert same(runs_dir, undisturbed, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.launcher.partition=nowhere"], "invalid partition specified: nowhere"),
        (["+hydra.launcher.partitoin=low"], "no such setting; the nearest is hydra.launcher.partition"),
        (["hydra.launcher.sbatch={array:3}"], "hydra.launcher.sbatch.array=3: set hydra.launcher.array_parallelism"),
        (["hydra.launcher.time=soon"], "hydra.launcher.time=soon: expects minutes"),
        (["hydra.launcher.time=00:02:00"], "hydra.launcher.grace=120: jobs of 120 s would stop before they began"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be(tmp_path: Path, tiny: list[str], arguments: list[str], message: str) -> None:
    done = run(tmp_path, *tiny, *SLURM, "seed=0,1", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert set(states(tmp_path / "runs").values()) <= {"planned"}


def test_a_sweep_started_inside_an_allocation_is_its_own_jobs(tmp_path: Path, tiny: list[str]) -> None:
    """Slurm would pass on what it told the surrounding job: its tasks, and its memory for each CPU."""
    command = [sys.executable, "-m", "mixersweep", *tiny, "epochs=1", *SLURM, "seed=0,1"]
    surrounding = ["salloc", "--nodelist=n1", "--ntasks=3", "--cpus-per-task=1"]
    done = subprocess.run(
        [*surrounding, *command], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert sorted(states(tmp_path / "runs").values()) == ["completed", "completed"]
