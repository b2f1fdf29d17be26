"""Runs that share a GPU have an MPS daemon of their own: here a script that writes down what it is asked."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixersweep.compose import config_of
from mixersweep.runs import RunDirectory, solve
from mixersweep.runs.files import write_json
from mixersweep.sweeps.launchers import mps
from tests.speed import HANGS
from tests.sweeps.commands import SMALL, environment, family, run, start, states, when

CONTROL = """#!{python}
import json, os, subprocess, sys
from pathlib import Path

pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
told = sys.stdin.read()
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
with Path({calls!r}).open("a") as calls:
    both = pipes.is_dir() and Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]).is_dir()
    call = dict(arguments=sys.argv[1:], told=told, pipes=str(pipes), gpus=gpus, both=both)
    calls.write(json.dumps(call) + "\\n")
if {code}:
    print("An instance of this daemon cannot be started")
    sys.exit({code})
if "-d" in sys.argv:
    daemon = subprocess.Popen(["sleep", "600"])  # which keeps what it is given open, as a daemon may
    (pipes / "pid").write_text(str(daemon.pid))
elif told == "quit\\n":
    os.kill(int((pipes / "pid").read_text()), 15)
"""


class Fake:
    """``nvidia-cuda-mps-control`` of a folder that is on the PATH."""

    def __init__(self, folder: Path, code: int = 0) -> None:
        self._calls = folder / "calls.jsonl"
        tool = folder / "bin" / mps.CONTROL
        tool.parent.mkdir()
        tool.write_text(CONTROL.format(python=sys.executable, calls=str(self._calls), code=code))
        tool.chmod(0o755)
        self.path = str(tool.parent)

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []

    @property
    def told(self) -> list[tuple[list[str], str]]:
        """Arguments and input of each call."""
        return [(call["arguments"], call["told"]) for call in self.calls]


BEGUN_AND_ENDED = [(["-d"], ""), ([], "quit\n")]


@pytest.fixture(autouse=True)
def nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon of this machine, and temporary directories that can be looked into."""
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(mps, "DEFAULT_PIPES", tmp_path / "nobody")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Fake:
    made = Fake(tmp_path, code)
    monkeypatch.setenv("PATH", made.path, prepend=os.pathsep)
    return made


def gpus(*names: str) -> list[dict[str, str]]:
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def test_a_daemon_begins_and_ends_with_those_who_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = fake(tmp_path, monkeypatch)
    said: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with mps.daemon(gpus("5", "5"), said.append) as told:
        (call,) = control.calls
        assert call["pipes"] == told["CUDA_MPS_PIPE_DIRECTORY"]
        assert call["both"] and call["gpus"] is None  # else the names of GPUs would be the daemon's
        process = psutil.Process(int((Path(told["CUDA_MPS_PIPE_DIRECTORY"]) / "pid").read_text()))
        assert os.getsid(process.pid) != os.getsid(0)  # a Ctrl-C at the terminal does not reach it
        assert Path(told["CUDA_MPS_LOG_DIRECTORY"]).is_dir()
    assert control.told == BEGUN_AND_ENDED
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert said == ["runs share a GPU by an MPS daemon of their own"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_it_ends_whatever_happens_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = fake(tmp_path, monkeypatch)
    with pytest.raises(KeyboardInterrupt), mps.daemon(gpus("0", "0"), lambda _: None):
        raise KeyboardInterrupt
    assert control.told == BEGUN_AND_ENDED


@pytest.mark.parametrize(
    "why", ["alone on each", "no GPU", "not wanted", "one in the environment", "one where all look"]
)
def test_there_is_none_where_none_is_needed(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = fake(tmp_path, monkeypatch)
    if why == "one in the environment":
        monkeypatch.setenv(mps.PIPES, str(tmp_path))
    if why == "one where all look":
        (tmp_path / "nobody").mkdir()
        (tmp_path / "nobody" / "control").touch()
    unshared: dict[str, list[dict[str, str]]] = {"alone on each": gpus("0", "1"), "no GPU": [{}, {}]}
    environments = unshared.get(why, gpus("0", "0"))
    with mps.daemon(environments, lambda _: None, is_wanted=why != "not wanted") as told:
        assert told == {}
    assert control.calls == []


def test_without_nvidias_program_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    with mps.daemon(gpus("0", "0"), said.append) as told:
        assert told == {}
    assert said == []


@pytest.mark.parametrize("how", ["it says so", "it is no program"])
def test_where_it_does_not_begin_the_runs_go_on_without(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fake(tmp_path, monkeypatch, code=3)
    said: list[str] = []
    if how == "it is no program":
        Path(control.path, mps.CONTROL).write_bytes(b"\x7fELF")
    with mps.daemon(gpus("0", "0"), said.append) as told:
        assert told == {}
    (line,) = said
    assert line.startswith("runs share a GPU without MPS: nvidia-cuda-mps-control ")
    if how == "it says so":
        assert line.endswith("ended with code 3: An instance of this daemon cannot be started")
        assert control.told == BEGUN_AND_ENDED[:1]


# --- the launchers -----------------------------------------------------------------------------------------------

TWO = ["train", "-m", *SMALL, "seed=0,1", "hydra.launcher.runs_per_gpu=2"]
"""The GPU is a name only here: the runs that are given it find none and train on the CPU."""


def supervising(pid: int) -> psutil.Process | None:
    """The supervisor that a launching process has started, beside what else it starts for a moment."""
    with suppress(psutil.NoSuchProcess):
        for child in family(pid):
            if " ".join(child.cmdline()).startswith("mixersweep supervisor of "):
                return child
    return None


@pytest.mark.flaky(reruns=1)
def test_runs_of_a_sweep_that_share_a_gpu_have_one_also_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fake(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    process = start(tmp_path, *TWO, "epochs=4000", "hydra.launcher.warm=false")
    supervisor = when(lambda: supervising(process.pid), process)
    assert supervisor is not None
    runs = when(lambda: supervisor.children() if len(supervisor.children()) == 2 else [], process)
    when(lambda: len(list((tmp_path / "runs").glob("[!.]*-s*/metrics.jsonl"))) == 2, process)
    (begun,) = control.calls
    assert [child.environ()["CUDA_MPS_PIPE_DIRECTORY"] for child in runs] == [begun["pipes"]] * 2
    assert Path(begun["pipes"]).is_dir()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130, err
    assert set(states(tmp_path / "runs").values()) == {"interrupted"}
    assert control.told == BEGUN_AND_ENDED
    assert not Path(begun["pipes"]).exists()


@pytest.mark.flaky(reruns=1)
def test_it_ends_when_the_launching_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = fake(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    process = start(tmp_path, *TWO, "epochs=4000", "hydra.launcher.warm=false")
    when(lambda: len(list((tmp_path / "runs").glob("[!.]*-s*/metrics.jsonl"))) == 2, process)
    others = family(process.pid)
    process.kill()
    process.communicate(timeout=HANGS)
    psutil.wait_procs(others, timeout=HANGS)
    assert set(states(tmp_path / "runs").values()) == {"preempted"}
    assert control.told == BEGUN_AND_ENDED
    assert not Path(control.calls[0]["pipes"]).exists()


def test_a_sweep_goes_on_without_a_daemon_that_does_not_begin_and_with_none_where_none_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fake(tmp_path, monkeypatch, code=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    done = run(tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    assert "runs share a GPU without MPS: nvidia-cuda-mps-control ended with code 1: An instance" in done.stderr
    assert set(states(tmp_path / "runs").values()) == {"completed"}
    done = run(tmp_path, *TWO, "hydra.launcher.mps=false", "runs_dir=others")
    assert done.returncode == 0 and "MPS" not in done.stderr, done.stderr
    assert len(control.calls) == 1


def test_a_slurm_job_of_several_packs_on_a_gpu_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job as Slurm would start it, without a Slurm."""
    control = fake(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    paths = []
    for seed in range(2):
        directory = RunDirectory.create(solve(config_of([*SMALL, f"seed={seed}"])), tmp_path / "runs")
        directory.freeze()
        paths.append(str(directory.path))
    record = tmp_path / "record.json"
    write_json(record, {"name": "a", "grace": 60, "pack": 1, "packs": [paths]})
    code = f"from mixersweep.sweeps.launchers.slurm_job import execute_pack; execute_pack({str(record)!r}, 0)"
    kept = {name: value for name, value in environment(tmp_path).items() if not name.startswith("SLURM_")}
    of_job = {**kept, "SLURM_JOB_ID": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=of_job, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs share a GPU by an MPS daemon of their own" in done.stdout
    assert set(states(tmp_path / "runs").values()) == {"completed"}
    assert control.told == BEGUN_AND_ENDED
