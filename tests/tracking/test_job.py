"""One mirror for all runs of a job, with the real W&B client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mixersweep import tracking
from mixersweep.runs import RunDirectory, hold, read_status
from mixersweep.tracking import job
from mixersweep.tracking.identity import HANDED_OVER, MIRRORED, OFFLINE, RESULT_PREFIX
from tests.speed import HANGS
from tests.tracking.loopback import Loopback
from tests.tracking.training import (
    TIMEOUT,
    epochs,
    eventually,
    gone,
    make,
    offline_rows,
    processes,
    result,
    row,
    run_id,
)

COMMAND = [sys.executable, "-m", "mixersweep"]


@contextmanager
def jobs_mirror(runs: list[RunDirectory], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """The mirror of a job of these runs, and its children; trainings in the block hand over to it."""
    said: list[str] = []
    paths = [run.path for run in runs]
    mirror = job.mirror_of_job(paths, paths[0].parent / ".sweeps" / "s1", said.append)
    with mirror as pipe, monkeypatch.context() as inside:
        for name, value in job.pipe_environment(pipe).items():
            inside.setenv(name, value)
        family: list[psutil.Process] = processes(runs[0])
        yield family
        family += [process for process in processes(runs[0]) if process not in family]
    eventually(lambda: gone(family))
    assert said == []


def train(directory: RunDirectory, said: list[str], during: Callable[[], object] = lambda: None) -> None:
    with hold(directory.path):
        mirror = tracking.start([directory], said.append)
        for epoch in range(3):
            directory.append_row(row(epoch))
        during()
        directory.write_result(result(directory))
    mirror.finish()


def pythons(directory: RunDirectory) -> list[psutil.Process]:
    return [process for process in processes(directory) if "mixersweep.tracking" in process.cmdline()]


def test_runs_of_a_job_share_one_process(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, late = runs = [make(tmp_path, f"seed={seed}") for seed in range(3)]
    said: list[str] = []

    def both_are_sent() -> None:
        eventually(lambda: all(run_id(run) in server.runs and server.runs[run_id(run)].lines for run in (one, two)))
        assert len(pythons(one)) == 1
        assert not pythons(two)

    with jobs_mirror(runs, monkeypatch):
        train(one, said, during=lambda: train(two, said, during=both_are_sent))
        eventually(lambda: server.runs[run_id(one)].exit_code == 0)  # while the job goes on
        train(late, said)
    assert said == []
    assert [epochs(server.runs[run_id(run)].received) for run in runs] == [[0, 1, 2]] * 3
    assert job.describe_mirroring([run.path for run in runs]) == [f"W&B: {server.url}/me/mixersweep"]


def test_a_mirror_that_is_killed_changes_no_training_and_the_rest_is_named(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = runs = [make(tmp_path, f"seed={seed}") for seed in range(2)]
    said: list[str] = []

    def kill(family: list[psutil.Process]) -> None:
        eventually(lambda: run_id(one) in server.runs)
        family[0].kill()
        family[0].wait()

    with jobs_mirror(runs, monkeypatch) as family:
        train(one, said, during=lambda: kill(family))
        train(two, said)  # which mirrors for itself
    assert said == []
    assert [run.status().state for run in runs] == ["completed"] * 2
    assert epochs(server.runs[run_id(two)].received) == [0, 1, 2]
    page, problem = job.describe_mirroring([run.path for run in runs])
    assert page.startswith(f"W&B: {server.url}")
    reason = "its mirror has not finished"
    assert problem == (
        f"W&B: 1 of 2 runs not fully mirrored ({one.run.name}: {reason}); `mixersweep wandb sync` sends them"
    )


def test_a_mirror_that_reads_nothing_holds_up_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make(tmp_path)
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writing, b" " * 4096)
        monkeypatch.setenv(job.PIPE, job.pipe_environment(writing)[job.PIPE])
        train(directory, said := [])
    finally:
        os.close(reading)
        os.close(writing)
    assert said == []
    assert epochs(offline_rows(directory)) == [0, 1, 2]


@pytest.mark.parametrize("stale", ["", "7", "0:1", "not a number", "1000000:1"])
def test_a_variable_of_no_pipe_is_not_written_to(tmp_path: Path, stale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(job.PIPE, stale)
    assert not job.hand_over({tmp_path: make(tmp_path).run.config.tracking})
    assert not (tmp_path / "wandb").exists()


def test_a_run_whose_training_is_killed_ends_at_its_job(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from mixersweep import tracking\n"
        "from mixersweep.runs import RunDirectory, hold\n"
        "directory = RunDirectory.open(Path(sys.argv[1]))\n"
        "with hold(directory.path):\n    tracking.start([directory], print)\n    time.sleep(1000)\n"
    )
    directory = make(tmp_path)
    with jobs_mirror([directory], monkeypatch):
        pipe = int(os.environ[job.PIPE].partition(":")[0])
        with subprocess.Popen([sys.executable, "-c", script, directory.path], pass_fds=[pipe]) as training:
            eventually(lambda: run_id(directory) in server.runs)
            training.kill()
        eventually(lambda: server.runs[run_id(directory)].exit_code == 1)


def test_a_sweep_says_once_what_became_of_its_runs(tmp_path: Path, home: Path) -> None:
    asked = (
        "model=s_mixer width=200 connections=2**12 depth=1 epochs=2 threads=1 device=cpu seed=0,1 tracking.report=false"
    )
    command = [*COMMAND, "train", "-m", *asked.split(), "hydra.launcher.jobs=2", f"tracking.timeout={TIMEOUT}"]
    most = 0
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweep:
        until = time.monotonic() + HANGS
        while sweep.poll() is None and time.monotonic() < until:
            most = max(most, sum(is_mirror(p) for p in psutil.Process(sweep.pid).children(recursive=True)))
            time.sleep(0.1)
        said = sweep.communicate()[1] if sweep.stderr else ""
    assert (sweep.returncode, most) == (0, 1), said
    (line,) = [line for line in said.splitlines() if "W&B" in line]
    assert line == "mixersweep: W&B: 2 of 2 runs are written offline; `mixersweep wandb sync` sends them"
    logs = list((tmp_path / "runs").glob("*/wandb/mirror.log"))
    assert [log.read_text().splitlines()[-1] for log in logs] == [f"{RESULT_PREFIX}{OFFLINE}"] * 2


def test_a_result_that_comes_soon_is_waited_for_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    log = tmp_path / "wandb" / "mirror.log"
    log.parent.mkdir()
    log.write_text(f"{RESULT_PREFIX}{HANDED_OVER}\n")
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) == 2:
            log.write_text(f"{log.read_text()}{RESULT_PREFIX}{MIRRORED}\n")

    job.wait_for_results([tmp_path, tmp_path / "none"], HANGS, check)
    assert len(checks) == 2
    log.write_text(f"{RESULT_PREFIX}{HANDED_OVER}\n")
    job.wait_for_results([tmp_path], 0.3, lambda: None)
    assert "its mirror has not finished" in job.describe_mirroring([tmp_path])[0]


def test_a_reason_that_runs_share_is_given_once(tmp_path: Path) -> None:
    results = {"a": "refused", "b": "no answer; `mixersweep wandb sync` sends it", "c": "refused", "d": MIRRORED}
    for name, text in results.items():
        (tmp_path / name / "wandb").mkdir(parents=True)
        (tmp_path / name / "wandb" / "mirror.log").write_text(f"{RESULT_PREFIX}{text}\n")
    reasons = "(a and 1 other: refused; b: no answer); `mixersweep wandb sync` sends them"
    assert job.describe_mirroring(sorted(tmp_path.iterdir())) == [f"W&B: 3 of 4 runs not fully mirrored {reasons}"]


def test_a_sweep_says_its_page_once_and_as_soon_as_it_is_known(tmp_path: Path, server: Loopback) -> None:
    asked = (
        "model=s_mixer width=200 connections=2**12 depth=1 epochs=4000 threads=1 device=cpu seed=0,1 tracking.entity=us"
    )
    command = [*COMMAND, "train", "-m", *asked.split(), "hydra.launcher.jobs=2", f"tracking.timeout={TIMEOUT}"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweep:
        assert sweep.stderr is not None
        page = next(line for line in sweep.stderr if "W&B" in line)
        states = [read_status(path).state for path in (tmp_path / "runs").glob("[!.]*-s*")]
        sweep.terminate()
        afterwards = sweep.communicate()[1]
    assert page == f"mixersweep: W&B: {server.url}/us/mixersweep\n"
    assert len(states) == 2 and "completed" not in states
    assert sweep.returncode == 75 and "W&B" not in afterwards, afterwards


def is_mirror(process: psutil.Process) -> bool:
    """Whether it is one, and no child that is about to become W&B's own process."""
    try:
        above = process.parent()
        return "mixersweep.tracking" in process.cmdline() and (above is None or not is_mirror(above))
    except psutil.Error:
        return False
