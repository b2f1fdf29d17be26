"""What a person is told of runs that a real Slurm has, had or has forgotten, and how often it is asked."""

import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import psutil
import pytest

from mixersweep.runs import Status, set_status
from mixersweep.runs.state import State
from tests.slurm.cluster import frozen, job_log, listed, missing, slurm, status, until
from tests.slurm.test_slurm import HELD, ROOT, SLURM, idle, run_of, tiny
from tests.speed import HANGS
from tests.sweeps.commands import numbers, rows, run, start, states

__all__ = ["idle", "tiny"]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.flaky(reruns=1),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Counted":
    """Slurm's commands write down that they are called."""
    return Counted(tmp_path / "shims", monkeypatch)


class Counted:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "calls"
        folder.mkdir()
        for name in ("squeue", "scancel", "sacct", "scontrol"):
            real = shutil.which(name) or "false"
            (folder / name).write_text(f'#!/bin/sh\necho {name} >> {self.log}\nexec {real} "$@"\n')
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def since(self) -> dict[str, int]:
        """How often each was called since the last look."""
        found = Counter(self.log.read_text().split() if self.log.exists() else [])
        self.log.unlink(missing_ok=True)
        return dict(found)


def lines(folder: Path, *arguments: str) -> dict[str, dict[str, object]]:
    """What ``status --json`` says of each seed."""
    done = run(folder, "status", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return {str(line["seed"]): line for line in map(json.loads, done.stdout.splitlines())}


def test_slurm_is_asked_once_whatever_the_number_of_runs(tmp_path: Path, tiny: list[str], calls: Counted) -> None:
    sweep = [*tiny, *SLURM, *HELD, "seed=range(24)", "hydra.launcher.runs_per_job=2"]
    assert run(tmp_path, *sweep).returncode == 0
    calls.since()
    told = lines(tmp_path)
    assert calls.since() == {"squeue": 1}
    assert {(line["state"], line["job_state"]) for line in told.values()} == {("queued", "PENDING (JobHeldUser)")}
    assert len({line["job"] for line in told.values()}) == 12
    planned = run(tmp_path, "plan", *sweep[1:])
    assert "24 queued" in planned.stdout
    assert calls.since() == {"squeue": 1}
    done = run(tmp_path, "cancel", "--state", "queued", "--model", "pk,s_mixer,sw_mlp,rp_s_mixer,mlp")
    assert done.returncode == 0, done.stderr
    assert calls.since() == {"squeue": 2, "scancel": 1}  # to choose them, and to release their jobs
    assert len(done.stdout.splitlines()) == 1 and "24 runs of" in done.stdout
    assert set(states(tmp_path / "runs").values()) == {"cancelled"}
    until(lambda: not listed())


def test_an_array_that_somebody_cancels_is_not_queued_for_ever(tmp_path: Path, tiny: list[str]) -> None:
    sweep = [*tiny, *SLURM, *HELD, "seed=0,1"]
    assert run(tmp_path, *sweep).returncode == 0
    array = str(status(run_of(tmp_path / "runs", 0))["job"]).partition("_")[0]
    waits = start(tmp_path, *tiny, *SLURM, "seed=0,1")
    assert waits.stderr is not None
    assert any("in the queue already" in line for line in waits.stderr)
    slurm("scancel", array)
    until(lambda: not listed())
    _, err = waits.communicate(timeout=HANGS)
    assert waits.returncode == 1
    assert err.count(f"its Slurm job {array}_0 was cancelled before the run began") == 2  # as it ended, and at the end
    assert run(tmp_path, *sweep).returncode == 0
    array = str(status(run_of(tmp_path / "runs", 0))["job"]).partition("_")[0]
    slurm("scancel", array)
    for seed, line in until(lambda: {s: n for s, n in lines(tmp_path).items() if n["state"] != "queued"}).items():
        assert line["state"] == "planned"
        assert f"job {array}_{seed} was cancelled" in str(line["next"]) and "the same command" in str(line["next"])
    assert "2 planned" in run(tmp_path, "plan", *sweep[1:]).stdout
    assert status(run_of(tmp_path / "runs", 0))["state"] == "queued"  # who only looks writes nothing
    assert "sweep tests: 2 runs: 2 planned" in run(tmp_path, *sweep).stderr


def test_a_job_that_slurm_has_forgotten(tmp_path: Path, tiny: list[str]) -> None:
    assert run(tmp_path, *tiny, *SLURM, *HELD, "seed=0").returncode == 0
    path = run_of(tmp_path / "runs", 0)
    slurm("scancel", str(status(path)["job"]))
    set_status(path, Status(State.QUEUED, since=1.0, job="999999_0"))
    line = lines(tmp_path)["0"]
    assert (line["state"], line["job_state"]) == ("failed", "gone")
    assert "Slurm knows no job 999999_0 any more" in str(line["next"])
    done = run(tmp_path, "retry", "--state", "failed")
    assert "was failed: starts anew" in done.stdout
    assert states(tmp_path / "runs")[path.name] == "planned"


def test_preempted_says_who_goes_on(tmp_path: Path, tiny: list[str]) -> None:
    """One is requeued by Slurm and goes on by itself, the job of one is cancelled."""
    process = start(tmp_path, *tiny, *SLURM, "seed=0,1")
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1)]
    with frozen(*paths) as jobs:
        slurm("scontrol", "requeuehold", jobs[0])
        slurm("scancel", jobs[1])
    until(lambda: jobs[1] not in listed() and listed().get(jobs[0]) == "")
    told = lines(tmp_path)
    assert {line["state"] for line in told.values()} == {"preempted"}
    assert str(told["0"]["job_state"]).startswith("PENDING (")
    assert f"scontrol release {jobs[0]}" in str(told["0"]["next"])
    assert "CANCELLED" in str(told["1"]["job_state"]) and "the same command goes on" in str(told["1"]["next"])
    assert "preempted by SIGTERM" in str(told["1"]["error"]) and "not requeued" in str(told["1"]["error"])
    slurm("scontrol", "release", jobs[0])
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert f"its Slurm job {jobs[1]}" in err or "not requeued" in err
    assert {name.rpartition("-s")[2][0]: state for name, state in states(tmp_path / "runs").items()} == {
        "0": "completed",
        "1": "preempted",
    }


def test_killed_processes_of_a_job_are_not_said_to_go_on_by_themselves(tmp_path: Path, tiny: list[str]) -> None:
    """First one of two runs is killed, which its job does not begin again, then the job's own process."""
    assert run(tmp_path, *tiny, "seed=0,1", "runs_dir=alone").returncode == 0
    sweep = [*tiny, *SLURM, "hydra.launcher.runs_per_job=2", "seed=0,1"]
    process = start(tmp_path, *sweep)
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1)]
    with frozen(*paths) as (job, _):
        victim = psutil.Process(status(paths[0])["pid"])
        main = victim.parents()[1]
        assert "mixersweep.sweeps.launchers.slurm_job" in main.cmdline()
        victim.kill()
        line = until(lambda: next((told for told in lines(tmp_path).values() if told["state"] == "lost"), None))
        assert (line["seed"], line["job_state"]) == (0, "RUNNING")
        assert str(line["next"]).startswith("the same command goes on when its job has ended")
        main.kill()
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert f"{paths[0].name}  (its Slurm job {job} ended (FAILED); the same command goes on)" in err
    assert f"preempted by SIGTERM  (its Slurm job {job} ended (FAILED); the same command goes on)" in err
    assert run(tmp_path, *sweep).returncode == 0
    assert numbers(tmp_path / "runs") == numbers(tmp_path / "alone")


def test_a_job_goes_on_by_itself_until_it_was_stopped_too_often_without_coming_further(
    tmp_path: Path, tiny: list[str]
) -> None:
    """A run that stands still saves nothing before its job has to decide: twice it is requeued, and then no more."""
    assert run(tmp_path, *tiny, "seed=0", "runs_dir=alone").returncode == 0
    saving = ["checkpoint.every=1000", "checkpoint.minutes=null"]
    sweep = [*tiny, *SLURM, *saving, "hydra.launcher.requeues=2", "hydra.launcher.grace=2", "seed=0"]
    process = start(tmp_path, *sweep)
    path = run_of(tmp_path / "runs", 0)
    stop(path, "USR1", answer="requeued")
    stop(path, "TERM", answer="requeued")
    job = stop(path, "USR2", answer="not requeued; raise hydra.launcher.time")
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    reason = f"job {job} was stopped 3 times without coming further: not requeued"
    assert reason in err
    line = lines(tmp_path)["0"]
    assert line["state"] == "preempted" and reason in str(line["error"])
    assert str(line["next"]).endswith("the same command goes on")
    said = job_log(tmp_path / "runs", job)
    assert said.count(f"job {job} requeued") == 2 and "requeued 2 times before" in said
    assert run(tmp_path, *sweep).returncode == 0
    assert numbers(tmp_path / "runs") == numbers(tmp_path / "alone")


def stop(run_dir: Path, signal: str, answer: str) -> str:
    """Send a signal to the job of a run that stands still until the job has said so much; returns the job."""
    with frozen(run_dir, after=len(rows(run_dir)) + 1) as (job,):
        before = len(job_log(run_dir.parent, job))
        slurm("scancel", f"--signal={signal}", job)
        until(lambda: answer in job_log(run_dir.parent, job)[before:])
    until(lambda: status(run_dir)["state"] != "running")
    return job


def test_a_submitter_that_dies_right_after_sbatch(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had still to write down is nothing that its jobs, or whoever comes later, need."""
    shim = tmp_path / "shims" / "sbatch"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" && kill -9 $PPID\n')
    shim.chmod(0o755)
    with monkeypatch.context() as context:
        context.setenv("PATH", str(shim.parent), prepend=os.pathsep)
        assert run(tmp_path, *tiny, *SLURM, *HELD, "seed=0,1").returncode == -9
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1)]
    assert {status(path)["job"] for path in paths} == {None}
    told = lines(tmp_path)
    assert {line["job_state"] for line in told.values()} == {"PENDING (JobHeldUser)"}
    jobs = sorted(listed())
    again = run(tmp_path, *tiny, *SLURM, "hydra.launcher.wait=false", "seed=0,1")
    assert again.returncode == 0 and "2 runs are in the queue already" in again.stderr
    slurm("scontrol", "release", jobs[0])
    until(lambda: status(paths[0])["state"] == "completed")
    waits = start(tmp_path, *tiny, *SLURM, "seed=0,1")
    assert waits.stderr is not None
    assert any("1 runs are in the queue already" in line for line in waits.stderr)
    slurm("scancel", jobs[1])
    _, err = waits.communicate(timeout=HANGS)
    assert waits.returncode == 1 and f"its Slurm job {jobs[1]} was cancelled before the run began" in err
    assert status(paths[1])["state"] == "planned"


def test_jobs_run_the_program_that_was_submitted(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mixersweep", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "copy"))
    sweep = [*tiny, *SLURM, *HELD]
    assert run(tmp_path, *sweep, "seed=0").returncode == 0
    said = run(tmp_path, *sweep, "seed=1", "hydra.launcher.snapshot=false").stderr
    assert f"jobs run the program in {tmp_path / 'copy'} as it is when they begin" in said
    (tmp_path / "copy" / "mixersweep" / "training" / "loop.py").write_text("raise ValueError('edited')\n")
    paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1)]
    for path in paths:
        slurm("scontrol", "release", str(status(path)["job"]))
    until(lambda: not listed())
    assert [status(path)["state"] for path in paths] == ["completed", "failed"]
    codes = {
        json.loads(file.read_text())["code"] for file in (tmp_path / "runs").glob(".sweeps/tests/slurm/????????.json")
    }
    (copy,) = (tmp_path / "runs" / ".sweeps" / ".code").iterdir()
    assert codes == {str(copy), str(tmp_path / "copy")}


def test_a_job_trains_so_many_of_its_runs_at_a_time(tmp_path: Path, tiny: list[str]) -> None:
    """Of three runs in a job, one after another: each begins when the one before has ended."""
    more = ["epochs=2", "hydra.launcher.runs_per_job=3", "hydra.launcher.runs_at_once=1", "seed=0,1,2"]
    done = run(tmp_path, *tiny, *SLURM, *more)
    assert done.returncode == 0, done.stderr
    assert "slurm: 3 runs in 1 jobs" in done.stderr
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("[!.]*-s?-*/result.json")]
    ordered = sorted(found, key=lambda record: str(record["started"]))
    assert len(ordered) == 3
    assert all(one["finished"] <= other["started"] for one, other in itertools.pairwise(ordered))
