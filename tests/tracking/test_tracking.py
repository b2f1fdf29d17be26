"""The mirror with the real W&B client, offline and against a server on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mixersweep import tracking
from mixersweep.config import parse
from mixersweep.errors import INTERRUPTED, PREEMPTED, RunDiverged, RunStopped
from mixersweep.runs import Origin, RunDirectory, completed, hold, planned, solve
from mixersweep.runs.files import read_json
from mixersweep.runs.record import _MEASURED
from tests.tracking.loopback import Loopback

KEY = "0123456789abcdef" * 2 + "fakefake"
CONFIGS = str(Path(__file__).parents[2] / "configs")
PROBLEM = "W&B: not fully mirrored"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No W&B settings, keys or folders of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("WANDB_", "XDG_")) or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    loopback = Loopback()
    monkeypatch.setenv("WANDB_BASE_URL", loopback.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds; 15 unless told
    yield loopback
    loopback.stop()


def make(tmp_path: Path, *overrides: str) -> RunDirectory:
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        composed = compose("train", ["model=s_mixer", "connections=4096", "tracking.timeout=10", *overrides])
    config = parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    return RunDirectory.create(solve(config, Origin(sweep="s1")), tmp_path / "runs")


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "time": 1.7e9 + epoch, "train_loss": 1 / (1 + epoch), "validation_accuracy": epoch / 100}


def result(directory: RunDirectory) -> dict[str, Any]:
    measured = dict.fromkeys(_MEASURED, 0.5) | {"environment": {"device": "cpu"}, "git_commit": None, "test_loss": 0.25}
    return completed(directory.run, measured)


def eventually(holds: Callable[[], object], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def processes(directory: RunDirectory) -> list[psutil.Process]:
    """The mirrors of this run that are alive, and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(directory.path) in process.cmdline():
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return found


def gone(family: list[psutil.Process]) -> bool:
    return not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class Training:
    """What a training does: hold the run, start the mirror, append rows, end; ``said`` is what the mirror reported."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.delay = 0.0

    def run(
        self, epochs: range, during: Callable[[], object] = lambda: None, ends: BaseException | None = None
    ) -> None:
        mirror = tracking.Mirror(self.directory.path, 0, self.said.append)
        family: list[psutil.Process] = []
        try:
            with hold(self.directory.path):
                mirror = tracking.start(self.directory, self.said.append)
                for epoch in epochs:
                    self.directory.append_row(row(epoch))
                during()
                family = processes(self.directory)
                if ends:
                    raise ends
                self.directory.write_result(result(self.directory))
        except BaseException as end:
            if end is not ends:
                raise
        finally:
            before = time.monotonic()
            mirror.finish()
            self.delay = time.monotonic() - before
        eventually(lambda: gone(family), 1)
        assert processes(self.directory) == []
        assert KEY not in everything(self.directory)


def everything(directory: RunDirectory) -> str:
    return "".join(file.read_bytes().decode(errors="replace") for file in directory.path.rglob("*") if file.is_file())


def run_id(directory: RunDirectory) -> str:
    return str(read_json(directory.path / "tracking.json")["id"])


def offline(directory: RunDirectory) -> list[dict[str, Any]]:
    """The records of the one offline file, by W&B's own reader."""
    (file,) = (directory.path / "wandb").glob("offline-run-*/*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    read = subprocess.run([wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


def offline_rows(directory: RunDirectory) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in offline(directory) if record["type"] == "history"]


def epochs(rows: list[dict[str, Any]]) -> list[int]:
    return [r["epoch"] for r in rows]


def test_none_starts_nothing(tmp_path: Path) -> None:
    training = Training(make(tmp_path, "tracking=none"))
    training.run(range(2), during=lambda: processes(training.directory) == [] or pytest.fail("a process"))
    assert training.said == []
    assert not (training.directory.path / "wandb").exists()


def test_training_process_never_imports_wandb() -> None:
    command = "import sys, mixersweep.tracking; assert not {'wandb', 'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_without_key_every_row_is_in_one_offline_file(tmp_path: Path) -> None:
    training = Training(make(tmp_path))
    training.run(range(3), ends=RunStopped("stop", PREEMPTED))
    assert epochs(offline_rows(training.directory)) == [0, 1, 2]
    training.run(range(3, 5))
    assert training.said == []
    rows = offline_rows(training.directory)
    assert [{key: r[key] for key in row(0)} for r in rows] == [row(epoch) for epoch in range(5)]
    records = {record["type"]: record for record in offline(training.directory)}
    assert records["exit"]["exit"].get("exit_code", 0) == 0
    assert str(tmp_path / "home") not in (training.directory.path / "wandb" / "mirror.log").read_text()


def test_disabled_by_the_environment(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    training = Training(make(tmp_path))
    training.run(range(2))
    assert training.said == []
    assert server.seen == []
    assert [file.name for file in (training.directory.path / "wandb").iterdir()] == ["mirror.log"]


def test_online_has_rows_config_and_summary(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine {server.url.removeprefix('http://')} login user password {KEY}\n")
    netrc.chmod(0o600)
    training = Training(make(tmp_path, "tracking.project=mine", "tracking.entity=us", "optim.lr=0.25"))
    directory, architecture = training.directory, training.directory.run.architecture
    training.run(range(3), during=lambda: eventually(lambda: server.runs and server.runs[run_id(directory)].lines))
    assert training.said == []
    stored = server.runs[run_id(directory)]
    assert [{key: r[key] for key in row(0)} for r in stored.rows] == [row(epoch) for epoch in range(3)]
    assert stored.exit_code == 0
    first = stored.upserts[0]
    assert (first["project"], first["entity"], first["displayName"]) == ("mine", "us", directory.run.name)
    assert (first["groupName"], first["jobType"], first["tags"]) == ("s1", "train", ["s_mixer", "fashion_mnist_10k"])
    config = stored.config
    assert config["model"] == "s_mixer"
    assert config["optim"] == "sgd"
    assert config["optim.lr"] == 0.25
    assert config["width"] == config["effective_width"] == architecture.width
    assert planned(directory.run).items() <= config.items()
    assert not {"tracking", "runs_dir", "data_dir"} & set(config)
    record = {key: value for key, value in result(directory).items() if isinstance(value, int | float | str)}
    assert record.items() <= stored.summary.items()
    assert stored.summary["effective_width"] == architecture.width
    assert "environment" not in stored.summary
    assert set(stored.files) == {"config.yaml", "wandb-summary.json"}
    assert not [request for request in server.seen if request.startswith("/")], "nothing about the machine"


@pytest.mark.parametrize(
    ("ends", "exit_code"),
    [(RunStopped("", PREEMPTED), 75), (RunStopped("", INTERRUPTED), 130), (RunDiverged("loss"), 1)],
    ids=["preempted", "interrupted", "diverged"],
)
def test_how_a_run_ended(tmp_path: Path, server: Loopback, ends: BaseException, exit_code: int) -> None:
    training = Training(make(tmp_path))
    training.run(range(2), ends=ends)
    stored = server.runs[run_id(training.directory)]
    assert (epochs(stored.rows), stored.exit_code, stored.preempting) == ([0, 1], exit_code, exit_code == PREEMPTED)
    assert training.said == []


def test_each_epoch_arrives_once_after_the_mirror_is_killed(tmp_path: Path, server: Loopback) -> None:
    training = Training(make(tmp_path))
    directory = training.directory

    def kill_then_go_on() -> None:
        eventually(lambda: server.runs and len(server.runs[run_id(directory)].lines) == 2)
        for process in processes(directory)[:1]:
            process.kill()
        directory.append_row(row(2))

    training.run(range(2), during=kill_then_go_on, ends=RunStopped("", INTERRUPTED))
    assert training.said == [f"{PROBLEM} (its process ended with code -9); the run directory is complete"]
    training.run(range(3, 5))
    stored = server.runs[run_id(directory)]
    assert epochs(stored.rows) == [0, 1, 2, 3, 4]
    assert (stored.exit_code, len(training.said)) == (0, 1)


def test_deleted_run_gets_another_id(tmp_path: Path, server: Loopback) -> None:
    directory = make(tmp_path, "tracking.timeout=5")
    refused = run_id(directory)
    server.deleted.add(refused)
    training = Training(directory)
    training.run(range(2), during=lambda: eventually(lambda: server.runs))
    drawn = run_id(directory)
    assert drawn != refused
    assert drawn.rpartition("-")[0] == directory.run.fingerprint[:16]
    assert list(server.runs) == [drawn]
    assert epochs(server.runs[drawn].rows) == [0, 1]
    assert training.said == []


def test_server_down_from_the_start_leaves_a_file_to_sync(tmp_path: Path, server: Loopback) -> None:
    server.stop()
    training = Training(make(tmp_path, "tracking.timeout=5"))
    training.run(range(2), during=lambda: time.sleep(2))
    assert training.delay < 7
    assert epochs(offline_rows(training.directory)) == [0, 1]
    (said,) = training.said
    assert said.startswith(PROBLEM)
    assert "wandb sync" in said


@pytest.mark.parametrize("failure", ["stop", "error", "hang", "refuse"])
def test_server_fails_in_the_middle(tmp_path: Path, server: Loopback, failure: str) -> None:
    training = Training(make(tmp_path, "tracking.timeout=4"))
    directory = training.directory

    def fail() -> None:
        eventually(lambda: server.runs and server.runs[run_id(directory)].lines)
        if failure == "stop":
            server.stop()
        server.mode = failure  # type: ignore[assignment]
        directory.append_row(row(1))

    training.run(range(1), during=fail)
    assert training.delay < 6
    (said,) = training.said
    assert said.startswith(PROBLEM)
    assert directory.status().state == "completed"
    assert epochs(directory.rows()) == [0, 1]


@pytest.mark.parametrize("mode", ["error", "hang"])
def test_server_never_answers(tmp_path: Path, server: Loopback, mode: Any) -> None:
    server.mode = mode
    training = Training(make(tmp_path, "tracking.timeout=1"))
    training.run(range(2))
    assert training.delay < 3
    assert training.said[0].startswith(PROBLEM)


def test_interrupt_while_finishing_leaves_no_process(tmp_path: Path, server: Loopback) -> None:
    server.mode = "hang"
    directory = make(tmp_path)
    with hold(directory.path):
        mirror = tracking.start(directory, print)
        eventually(lambda: len(processes(directory)) > 1)
    family = processes(directory)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            mirror.finish()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert gone(family)


def test_no_process_to_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    training = Training(make(tmp_path))
    training.run(range(1))
    (said,) = training.said
    assert said.startswith("W&B: no mirror")


TRAINS_AND_HANGS = """
import sys, time
from pathlib import Path
from mixersweep import tracking
from mixersweep.runs import RunDirectory, hold
directory = RunDirectory.open(Path(sys.argv[1]))
with hold(directory.path):
    tracking.start(directory, print)
    directory.append_row({"epoch": 0, "train_loss": 1.0})
    time.sleep(100)
"""


def test_mirror_ends_by_itself_when_the_training_is_killed(tmp_path: Path, server: Loopback) -> None:
    directory = make(tmp_path)
    with subprocess.Popen([sys.executable, "-c", TRAINS_AND_HANGS, directory.path]) as training:
        try:
            eventually(lambda: server.runs and server.runs[run_id(directory)].lines)
            family = [*processes(directory)]
            directory.append_row({"epoch": 1, "train_loss": 0.5})
        finally:
            training.kill()
    eventually(lambda: gone(family), 5)
    stored = server.runs[run_id(directory)]
    assert (epochs(stored.rows), stored.exit_code) == ([0, 1], 1)
