"""What can be said of Slurm's jobs and told to it without a Slurm: its answers as they are on big clusters."""

import json
from pathlib import Path

import pytest

from mixersweep.runs import Run, Status, read_status
from mixersweep.runs.listing import read_listed
from mixersweep.runs.state import State
from mixersweep.sweeps.launchers import slurm_queue
from mixersweep.sweeps.launchers.slurm_job import _FutileStops
from mixersweep.sweeps.launchers.slurm_queue import Job, error_message, with_slurm_jobs
from tests.runs.synthetic import seeded, shapes, write_run


@pytest.fixture(scope="module")
def base() -> Run:
    return shapes(("s_mixer",), (900,))[0]


def answers(folder: Path, monkeypatch: pytest.MonkeyPatch, **said: str) -> None:
    """Commands of Slurm's that say this."""
    for name, text in said.items():
        (folder / name).write_text(f"#!/bin/sh\ncat <<'SAID'\n{text}\nSAID\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_what_squeue_has_forgotten_sacct_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Run) -> None:
    jobs = ["7_0", "7_1", "7_2", "8_3", "9_0"]
    for seed, job in enumerate(jobs):
        write_run(tmp_path / "runs", seeded(base, seed), "queued", job=job, since=1.0)
    live = "7|1|PENDING|Dependency|some-1234|odd name"
    late = "7_0|OUT_OF_MEMORY\n8_[2-4%2]|CANCELLED by 1000\n7_2|RUNNING"
    answers(tmp_path, monkeypatch, squeue=live, sacct=late)
    listed = [run for path in (tmp_path / "runs").iterdir() if (run := read_listed(path)) is not None]
    found = {run.job: run for run in with_slurm_jobs(listed)}
    assert {job: run.state for job, run in found.items()} == {
        "7_0": State.FAILED,
        "7_1": State.QUEUED,
        "7_2": State.FAILED,  # accounting never heard of its end
        "8_3": State.PLANNED,
        "9_0": State.FAILED,
    }
    assert found["7_1"].job_state == "PENDING (Dependency)" and found["7_1"].next is None
    assert "its Slurm job 7_0 ended (OUT_OF_MEMORY) before the run began" in str(found["7_0"].next)
    assert "its Slurm job 8_3 was cancelled before the run began" in str(found["8_3"].next)
    assert "Slurm knows no job 9_0 any more" in str(found["9_0"].next)
    assert {read_status(run.path).state for run in listed} == {State.QUEUED}  # whoever looks writes nothing


@pytest.mark.parametrize(
    ("state", "squeue", "shown", "said"),
    [
        ("preempted", "7|0|PENDING|BeginTime|a", "preempted", "goes on by itself"),
        ("preempted", "7|0|CANCELLED|None|a", "preempted", "its Slurm job 7_0 was cancelled; the same command goes on"),
        ("preempted", "", "preempted", "Slurm knows no job 7_0 any more; the same command goes on"),
        ("running", "7|0|PENDING|BeginTime|a", "lost", "goes on by itself"),
        ("running", "7|0|RUNNING|None|a", "lost", "the same command goes on when its job has ended"),
        ("running", "7|0|NODE_FAIL|None|a", "lost", "its Slurm job 7_0 ended (NODE_FAIL); the same command goes on"),
        ("queued", "7|0|PENDING|JobHeldUser|a", "queued", "held: scontrol release 7_0 lets it go on"),
        ("queued", "7|0|PENDING|DependencyNeverSatisfied|a", "queued", "never begins"),
        ("queued", "7|N/A|CANCELLED|None|a", "planned", "was cancelled before the run began"),
    ],
)
def test_who_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Run, state: str, squeue: str, shown: str, said: str
) -> None:
    path = write_run(tmp_path / "runs", base, state, epoch=3, job="7_0", since=1.0)
    answers(tmp_path, monkeypatch, squeue=squeue, sacct="")
    listed = read_listed(path)
    assert listed is not None
    (run,) = with_slurm_jobs([listed])
    assert run.state == shown and said in str(run.next)


def test_a_slurm_that_does_not_answer_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Run
) -> None:
    path = write_run(tmp_path / "runs", base, "queued", job="7_0", since=1.0)
    answers(tmp_path, monkeypatch, squeue="")
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    listed = read_listed(path)
    assert listed is not None
    problems: list[str] = []
    (run,) = with_slurm_jobs([listed], problems)
    assert (run.state, run.next) == (State.QUEUED, "Slurm cannot be asked here")
    assert problems == ["hydra/launcher=slurm: slurm_load_jobs error: Unable to contact"]


def test_a_refusal_is_what_was_wrong() -> None:
    said = "sbatch: unrecognized option '--foo=1'\nTry \"sbatch --help\" for more information\n"
    assert error_message(said) == "sbatch: unrecognized option '--foo=1'"
    assert error_message("sbatch: error: bad\nsbatch: error: bad\n") == "sbatch: error: bad"


def test_jobs_are_released_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Run) -> None:
    runs = [write_run(tmp_path / "runs", seeded(base, seed), "cancelled") for seed in range(3)]
    waits = write_run(tmp_path / "runs", seeded(base, 3), "queued")
    record = tmp_path / "runs" / ".sweeps" / "s" / "slurm" / "abcd.json"
    record.parent.mkdir(parents=True)
    packs = [[str(runs[0]), str(runs[1])], [str(runs[2]), str(waits)]]
    record.write_text(json.dumps({"name": "s-abcd", "packs": packs}))
    answers(tmp_path, monkeypatch, scancel="")
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "told"}\n')
    jobs = [Job("7_0", 0, "PENDING", name="s-abcd"), Job("7_1", 1, "PENDING", name="s-abcd")]
    assert slurm_queue.cancel_jobs(runs, jobs) == {"7_0"}
    assert (tmp_path / "told").read_text() == "7_0\n"


def test_a_job_counts_how_often_it_was_stopped_in_vain(tmp_path: Path, base: Run) -> None:
    path = write_run(tmp_path / "runs", base, "queued")
    kept = tmp_path / "job.0.json"

    def attempt(saves: bool) -> int:
        attempts = _FutileStops(kept, [path])
        if saves:
            (path / "checkpoint.pt").write_bytes(b"further")
        return attempts.update()

    (path / "checkpoint.pt").unlink(missing_ok=True)
    assert [attempt(saves) for saves in (False, False, True, False)] == [1, 2, 0, 1]


def test_the_state_of_a_job_that_never_began_is_of_a_kind_that_is_stored() -> None:
    assert slurm_queue.status_of_unstarted(Job("7_0", 0, "CANCELLED"), "7_0") == Status(
        State.PLANNED, error="its Slurm job 7_0 was cancelled before the run began"
    )
