"""What a sweep asks of a cluster, said before it is asked; no Slurm is needed for that."""

import subprocess
import sys
from pathlib import Path

import pytest

from mixersweep.errors import UserError
from mixersweep.runs import RunDirectory, read_status
from mixersweep.sweeps.cluster import batch_scripts, estimate, resolve_auto
from mixersweep.sweeps.expand import Expansion, expand
from mixersweep.sweeps.plan import plan
from mixersweep.training.environment import choose_device
from tests.runs.synthetic import write_run

SWEEP = ["connections=1000", "depth=1", "device=cpu", "threads=1", "model=s_mixer,sw_mlp", "seed=range(3)"]
SLURM = [*SWEEP, "hydra/launcher=slurm"]


def of(folder: Path, *more: str) -> Expansion:
    return expand([*SLURM, f"runs_dir={folder / 'runs'}", *more], multirun=True)


def known(folder: Path, *more: str) -> Expansion:
    """The same, where a run of each shape has completed, in ten minutes."""
    expansion = of(folder, *more)
    for point in expansion.points[::3]:
        assert point.run is not None
        write_run(folder / "runs", point.run, seconds=600.0)
    return expansion


def test_jobs_times_cores_times_hours(tmp_path: Path) -> None:
    expansion = known(tmp_path, "hydra.launcher.runs_per_job=4", "hydra.launcher.runs_at_once=2")
    found = estimate(expansion, plan(expansion))
    assert found is not None
    assert (len(found.jobs), found.cores, found.gpus) == (1, 2, 0)
    assert found.seconds is not None and 1200 <= found.seconds < 1500  # four runs of ten minutes, two at once
    assert found.core_seconds == pytest.approx(2 * found.seconds)
    assert found.lines == [
        f"slurm: 1 job of 4 runs, 2 at once, 2 cores each; at most {found.seconds / 60:.0f} min a job, "
        f"{found.seconds / 1800:.1f} core hours in all"
    ]
    assert found.notes == []


def test_a_limit_shorter_than_a_job_is_told(tmp_path: Path) -> None:
    expansion = known(tmp_path, "hydra.launcher.time=5")
    found = estimate(expansion, plan(expansion))
    assert found is not None
    (note,) = found.notes
    assert note.startswith("hydra.launcher.time=5: the longest job takes about 1") and "goes on" in note


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (["hydra.launcher.cpus=null"], "hydra.launcher.cpus=null: its threads share what the cluster gives"),
        (
            ["hydra.launcher.cpus=4", "hydra.launcher.runs_per_job=3"],
            "3 runs at once of 2 threads share 4 cores; 6 would",
        ),
        (["hydra.launcher.cpus=auto", "hydra.launcher.runs_per_job=3"], None),
    ],
)
def test_cores_that_do_not_match_the_runs_at_once_are_told(
    tmp_path: Path, settings: list[str], note: str | None
) -> None:
    expansion = of(tmp_path, "threads=2", *settings)
    found = estimate(expansion, plan(expansion))
    assert found is not None
    assert found.notes == [] if note is None else note in found.notes[0]


def test_time_and_memory_by_the_plan(tmp_path: Path) -> None:
    auto = ["hydra.launcher.time=auto", "hydra.launcher.mem=auto"]
    with pytest.raises(UserError, match=r"hydra\.launcher\.time=auto: nobody knows how long"):
        resolve_auto(of(tmp_path, *auto))
    launcher = resolve_auto(known(tmp_path, *auto)).launcher
    assert 15 < launcher["time"] < 30  # minutes, for a run of ten
    assert launcher["mem"].endswith("M") and 1400 < int(launcher["mem"][:-1]) < 2000


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    more = ["hydra.launcher.gpus=2", "hydra.launcher.gpu_type=a100", "hydra.launcher.time=1-00:00:00"]
    command = [sys.executable, "-m", "mixersweep", "train", "-m", "--dry-run", *SLURM, *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --gpus-per-node=a100:2", "#SBATCH --time=1-00:00:00", "#SBATCH --array=0-5"} <= set(lines)
    assert "#SBATCH --cpus-per-task=1" in lines and "#SBATCH --signal=USR2@120" in lines
    assert "mixersweep.sweeps.launchers.slurm_job" in lines[-1]
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="--dry-run: prints the script of hydra/launcher=slurm"):
        batch_scripts(expand(SWEEP, multirun=True))
    one = [*command[:4], "--dry-run", "model=pk", "width=64"]
    done = subprocess.run(one, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dry-run: prints the script of a sweep" in done.stderr and not list(tmp_path.iterdir())


def test_more_at_once_than_there_are_cannot_be(tmp_path: Path) -> None:
    expansion = of(tmp_path, "hydra.launcher.runs_per_job=2", "hydra.launcher.runs_at_once=3")
    with pytest.raises(UserError, match="runs_at_once=3: a job has 2 runs"):
        estimate(expansion, plan(expansion))


@pytest.mark.parametrize(
    ("launcher", "setting", "message"),
    [
        ("slurm", "hydra.launcher.timeout=20", "hydra/launcher=slurm; the nearest is hydra.launcher.time"),
        ("slurm", "hydra.launcher.partitoin=a", "the nearest is hydra.launcher.partition"),
        ("local", "hydra.launcher.partition=a", "hydra/launcher=local; there are name, jobs, gpus"),
        ("ray", "hydra.launcher.cpus=2", "the nearest is hydra.launcher.cpus_per_run"),
    ],
)
def test_a_setting_that_a_launcher_has_not(launcher: str, setting: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        expand([*SWEEP, f"hydra/launcher={launcher}", setting], multirun=True)
    assert message in str(raised.value) and "+" not in str(raised.value)


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setenv("MIXERSWEEP_GPU", "asked")
    with pytest.raises(UserError, match="device=auto: the launcher was asked for GPUs"):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"


def test_runs_that_fail_are_launched_again_as_often_as_is_asked_for(tmp_path: Path) -> None:
    """The data are missing, so that they fail each time."""
    settings = ["connections=1000", "depth=1", "device=cpu", "threads=1", "tracking=none", "data=digits", "seed=0,1"]
    more = [f"data_dir={tmp_path / 'none'}", "sweep.retries=2", "hydra.launcher.jobs=1"]
    command = [sys.executable, "-m", "mixersweep", "train", "-m", *settings, *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    told = [line for line in done.stderr.splitlines() if "launched again" in line]
    assert told == [f"mixersweep: 2 runs failed or were lost: launched again ({times} of 2 times)" for times in (1, 2)]
    for path in (tmp_path / "runs").glob("*-s?-*"):
        assert (path / "log.txt").read_text().count("DataMissing") + (path / "log.txt").read_text().count("error:") >= 3
        assert read_status(RunDirectory.open(path).path).state == "failed"
