"""The local launcher: how cores and GPUs are shared, and runs that end in ways nobody planned."""

import json
import os
import signal
from pathlib import Path

import pytest

from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.sweeps.launchers.local import LocalSettings, Slot
from mixersweep.sweeps.launchers.local import slots as slots_for
from tests.speed import HANGS
from tests.sweeps.commands import SMALL, results, run, start, states, training, when

CORES = sorted(os.sched_getaffinity(0))


def slots(*overrides: str, count: int = 64, **settings: object) -> list[Slot]:
    values = {"name": "local", "jobs": "auto", "gpus": "auto", "runs_per_gpu": 1, "warm": True, **settings}
    return slots_for(LocalSettings(**values), config_of([*SMALL, "threads=auto", *overrides]), count)  # type: ignore[arg-type]


def test_every_core_has_a_run_of_its_own() -> None:
    shared = slots("device=cpu")
    assert sorted(core for slot in shared for core in slot.cores) == CORES
    assert all(len(slot.cores) == 1 and not slot.environment for slot in shared)


def test_few_runs_share_all_cores() -> None:
    (only,) = slots("device=cpu", count=1)
    assert list(only.cores) == CORES
    assert len(slots("device=cpu", jobs=1)) == 1


def test_runs_of_several_threads_have_as_many_cores() -> None:
    shared = slots("device=cpu", f"threads={len(CORES)}")
    assert [list(slot.cores) for slot in shared] == [CORES]
    assert len(slots("device=cpu", jobs=3 * len(CORES))) == 3 * len(CORES)  # who asks for more, gets it


def test_each_visible_gpu_is_one_runs_or_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")

    def seen(**settings: object) -> list[str]:
        return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots(**settings)]  # type: ignore[arg-type]

    assert seen() == ["3", "5"]
    assert seen(runs_per_gpu=2) == ["3", "5", "3", "5"]
    assert seen(runs_per_gpu=2, jobs=3) == ["3", "5", "3"]
    assert seen(gpus=1) == ["3"]
    assert seen(count=1) == ["3"]
    assert all(not slot.environment for slot in slots(gpus=0))
    assert all(not slot.environment for slot in slots("device=cpu"))
    with pytest.raises(UserError, match="gpus=3: there are 2 visible GPUs here"):
        slots(gpus=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert all(not slot.environment for slot in slots())


@pytest.mark.parametrize("warm", ["true", "false"])
def test_a_run_has_the_threads_of_its_share_and_the_gpu_of_its_slot(
    tmp_path: Path, warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs are names only here: the run that is given one finds none and trains on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    arguments = [*SMALL, "threads=auto", "seed=0,1", "hydra.launcher.jobs=2", f"hydra.launcher.warm={warm}"]
    process = start(tmp_path, "train", "-m", *arguments, "epochs=4000")
    supervisor, _ = when(lambda: training(process.pid), process)
    runs = when(lambda: supervisor.children() if len(supervisor.children()) == 2 else [], process)
    when(lambda: len(list((tmp_path / "runs").glob("[!.]*-s*/metrics.jsonl"))) == 2, process)
    affinities = [child.cpu_affinity() for child in runs]
    assert sorted(core for cores in affinities for core in cores) == CORES[: 2 * (len(CORES) // 2)] or len(CORES) == 1
    if warm == "false":  # of a fork, the system shows the environment of its parent
        assert sorted(child.environ()["CUDA_VISIBLE_DEVICES"] for child in runs) == ["7", "8"]
    process.terminate()
    process.communicate(timeout=HANGS)
    assert process.returncode == 75
    assert set(states(tmp_path / "runs").values()) == {"preempted"}


@pytest.mark.flaky(reruns=1)
def test_a_run_that_dies_before_it_begins_is_failed_with_the_reason(tmp_path: Path) -> None:
    arguments = ["train", "-m", *SMALL, "seed=0,1", "hydra.launcher.jobs=2"]
    process = start(tmp_path, *arguments, "epochs=4000")
    supervisor, _ = when(lambda: training(process.pid), process)
    for child in when(lambda: supervisor.children() if len(supervisor.children()) == 2 else [], process):
        child.kill()
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert err.count("killed by SIGKILL before it began; see log.txt") >= 1 or err.count("lost") >= 1
    assert not set(states(tmp_path / "runs").values()) & {"queued", "completed"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_before_it_has_begun_is_not_failed(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "train", "-m", *SMALL, "epochs=4000", "seed=0,1", "hydra.launcher.jobs=2")
    supervisor, _ = when(lambda: training(process.pid), process)
    for child in when(lambda: supervisor.children() if len(supervisor.children()) == 2 else [], process):
        child.send_signal(number)
    process.communicate(timeout=HANGS)
    runs = tmp_path / "runs"
    assert set(states(runs).values()) == {"interrupted" if number == signal.SIGINT else "preempted"}
    assert not any("Traceback" in log.read_text() for log in runs.glob("*/log.txt"))


def test_a_broken_run_directory_does_not_stop_the_others(tmp_path: Path) -> None:
    arguments = ["train", "-m", *SMALL, "seed=0,1"]
    first = run(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    broken, whole = (Path(line).parent for line in first.stdout.splitlines())
    for path in (broken, whole):
        (path / "status.json").write_text(json.dumps({"state": "interrupted"}))
    (broken / "config.yaml").write_text("schema_version: 1\n")
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    assert [record["seed"] for record in results(done.stdout)] == [1]
    assert "config.yaml is incomplete" in done.stderr
    (whole / "status.json").write_text(json.dumps({"state": "interrupted"}))
    (whole / "config.yaml").write_text("schema_version: 1\n")
    alone = run(tmp_path, *arguments)
    assert (alone.returncode, alone.stdout) == (2, "")


def test_a_place_that_cannot_be_written_is_a_user_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "train", "-m", *SMALL, "seed=0,1", "runs_dir=file")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"runs_dir={tmp_path / 'file'}: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
