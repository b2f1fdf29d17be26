"""`mixersweep status`, `retry`, `cancel` and `logs`, as they are typed: real files, real processes, real signals."""

import dataclasses
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixersweep.compose import config_of
from mixersweep.errors import RunCancelled, RunStopped
from mixersweep.runs import Run, RunDirectory, Status, hold, read_status, set_status, solve, status
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State
from mixersweep.runs.status import this_host
from mixersweep.sweeps.text import align, format_duration, format_quantity
from tests.runs.synthetic import NOW, seeded, shapes, write_run
from tests.speed import HANGS

COMMAND = [sys.executable, "-m", "mixersweep"]
SMALL = ["connections=1000", "depth=1", "batch_size=1500", "threads=1", "tracking=none"]

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MIXERSWEEP_"))}
    return {**kept, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str]) -> Command:
    def command(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=HANGS,
        )

    return command


@pytest.fixture(scope="module")
def bases() -> list[Run]:
    return shapes(("s_mixer", "sw_mlp"), (900, 1024))


@pytest.fixture
def runs(tmp_path: Path, bases: list[Run]) -> dict[str, Path]:
    """A run of each state, in ./runs."""
    wanted = [
        *("completed", "failed", "running", "diverged", "planned", "queued", "interrupted", "preempted", "cancelled"),
    ]
    texts = {"failed": "OSError: disk full\nat night", "diverged": "train_loss is nan"}
    place = tmp_path / "runs"
    found = {}
    for number, state in enumerate(wanted):
        run = seeded(bases[number % 4], number)
        found[state] = write_run(place, run, state, epoch=3, error=texts.get(state))
    found["lost"] = found.pop("running")
    found["broken"] = write_run(place, seeded(bases[0], 99))
    (found["broken"] / "result.json").unlink()
    return found


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def when(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.time() + HANGS
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.01)


# --- status ------------------------------------------------------------------------------------------------------


def test_status_has_a_line_for_every_run_and_one_for_all(command: Command, runs: dict[str, Path]) -> None:
    done = command("status")
    assert (done.returncode, done.stderr) == (0, "")
    heading, *table, total = done.stdout.splitlines()
    assert heading.split() == ["state", "epoch", "accuracy", "images/s", "left", "host", "beat", "run"]
    assert {line.split()[0]: line.split()[7].strip() for line in table if "broken" not in line}.items() >= {
        (state, path.name) for state, path in runs.items() if state not in ("broken", "lost")
    }
    by_state = {line.split()[0]: line for line in table}
    assert list(by_state)[-4:] == ["diverged", "failed", "lost", "broken"]  # what needs somebody stands last
    assert "(OSError: disk full at night)" in by_state["failed"]
    assert "d ago" in by_state["lost"]
    assert by_state["broken"].endswith("(is completed, but result.json is missing)")
    assert "30/30" in by_state["completed"] and " 3/30" in by_state["failed"]
    assert total.startswith("10 runs: 1 completed, 1 cancelled, 1 planned")
    columns = {line.index(Path(path).name) for path in runs.values() for line in table if Path(path).name in line}
    assert len(columns) == 1  # in columns, whatever stands before
    assert "\x1b" not in done.stdout


def test_status_as_json_has_an_object_for_every_run(command: Command, runs: dict[str, Path]) -> None:
    found = {line["state"]: line for line in lines(command("status", "--json"))}
    assert {state: line["run_dir"] for state, line in found.items()} == {s: str(p) for s, p in runs.items()}
    assert len({tuple(line) for line in found.values()}) == 1  # the same keys in all
    one = found["completed"]
    assert one["name"] == runs["completed"].name
    assert (one["epoch"], one["epochs"], one["model"], one["width"], one["seed"]) == (30, 30, "s_mixer", 896, 0)
    assert one["test_accuracy"] == read_json(runs["completed"] / "result.json")["test_accuracy"]
    assert one["seconds_left"] is None
    assert (found["lost"]["epoch"], found["lost"]["heartbeat"]) == (3, NOW + 60)
    assert found["lost"]["host"] == this_host().partition("/")[0]
    assert found["failed"]["error"] == "OSError: disk full\nat night"
    assert found["planned"]["host"] is None


def test_status_filters(command: Command, runs: dict[str, Path], tmp_path: Path) -> None:
    def states(*arguments: str) -> set[str]:
        return {line["state"] for line in lines(command("status", "--json", *arguments))}

    assert states("--state", "failed,lost") == {"failed", "lost"}
    assert states("--model", "s_mixer") | states("--model", "sw_mlp") == set(runs) - {"broken"}
    assert states("--model", "s_mixer").isdisjoint(states("--model", "sw_mlp"))
    assert states("--sweep", "fig4") == set(runs) - {"broken"}
    unknown = command("status", "--sweep", "fig5")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "--sweep fig5: no run here is of such a sweep; there is fig4" in unknown.stderr
    wide = {line["name"] for line in lines(command("status", "--json", "--where", "width>=1000 and model=sw_mlp"))}
    assert wide == {p.name for s, p in runs.items() if s != "broken" and p.name.startswith("sw_mlp-w1024")} != set()
    assert states("--where", "epoch<30 and test_accuracy<0.5 and not state=failed") >= {"lost", "diverged"}
    assert states("--where", "optim.lr=0.1", "--state", "lost,broken") == {"lost"}
    assert len(lines(command("status", "--json", str(runs["lost"]), str(runs["failed"])))) == 2


def test_a_running_run_says_how_long_it_has_to_go(command: Command, tmp_path: Path, bases: list[Run]) -> None:
    now = time.time()
    path = write_run(
        tmp_path / "runs", bases[0], "running", epoch=10, host="far/away", since=now - 30, heartbeat=now - 4
    )
    texts = (path / "metrics.jsonl").read_text().splitlines()
    rows = [{**json.loads(text), "time": now - 20 + 2 * n} for n, text in enumerate(texts, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (line,) = lines(command("status", "--json"))
    assert line["state"] == "running"
    assert 30 < line["seconds_left"] <= 40  # 20 epochs of 2 s, less the time since the last row
    text = command("status").stdout.splitlines()[1]
    assert re.search(r"running  10/30  .*  \d\d s  far   \d+ s ago  s_mixer", text), text


@pytest.mark.parametrize("epochs_since", [0, 1])
def test_a_pause_is_no_epoch(command: Command, tmp_path: Path, bases: list[Run], epochs_since: int) -> None:
    now = time.time()
    path = write_run(tmp_path / "runs", bases[0], "running", epoch=2, host="far/away", since=now - 1, heartbeat=now)
    texts = (path / "metrics.jsonl").read_text().splitlines()
    ended = [now - 7200, now if epochs_since else now - 7198]
    rows = [{**json.loads(text), "time": when} for text, when in zip(texts, ended, strict=True)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (line,) = lines(command("status", "--json"))
    assert 0 < line["seconds_left"] <= 28 * 2  # after two hours in which nobody trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["--where", "width"], "quote it: --where 'width>1000'"),
        (["--where", "widht>3"], "the nearest is width"),
        (["--state", "failde"], "--state failde: not one of completed, .*; the nearest is failed"),
        (["--state", ""], "not one of"),
        (["--model", "sw_mlpp"], "the nearest is sw_mlp"),
        (["--watch"], "needs a terminal"),
        (["--watch", "--json"], "not with --json"),
        (["--wacth"], "unrecognized arguments: --wacth"),
        (["--state"], "expected one argument"),
    ],
)
def test_a_mistake_is_told_and_ends_in_2(
    command: Command, runs: dict[str, Path], arguments: list[str], message: str
) -> None:
    done = command("status", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_no_runs_are_no_error_and_no_directory_is_one(command: Command, tmp_path: Path) -> None:
    done = command("status")
    assert (done.returncode, done.stdout) == (2, "")
    assert "runs: no such directory" in done.stderr
    (tmp_path / "other").mkdir()
    done = command("status", MIXERSWEEP_RUNS=str(tmp_path / "other"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 runs\n", "")
    assert command("status", "--json", "other").stdout == ""


def test_status_and_its_like_import_neither_torch_nor_hydra(runs: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys; from mixersweep.cli import main\n"
        "for verb in (['status'], ['status', '--json', '--where', 'width>1'], ['retry', '--state', 'failed'],\n"
        "             ['cancel', '--state', 'planned'], ['logs', '--lines', '1', sys.argv[1]]):\n"
        "    assert main(verb) == 0, verb\n"
        "assert not {'torch', 'wandb', 'hydra', 'pydantic', 'matplotlib'} & set(sys.modules), 'slow imports'"
    )
    (runs["failed"] / "log.txt").write_text("bad\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs["failed"])], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Terminal:
    """The command in a terminal of 100 x 8."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str], size: tuple[int, int]) -> None:
        self.pid, self._file = pty.fork()
        if not self.pid:
            os.chdir(cwd)
            kept = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
            os.execvpe(COMMAND[0], [*COMMAND, *arguments], {**kept, "TERM": "xterm"})
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.text = ""

    def until(self, wanted: str) -> None:
        deadline = time.time() + HANGS
        while wanted not in self.text:
            if time.time() > deadline or not self._read():
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(self.text)

    def end(self) -> int:
        """The exit code, and the rest of the text."""
        while self._read():
            pass
        _, code = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(code)

    def _read(self) -> bool:
        if select.select([self._file], [], [], 1)[0]:
            try:
                self.text += os.read(self._file, 65536).decode()
            except OSError:
                return False
        return True


def test_a_terminal_gets_colours_and_lines_that_fit(
    runs: dict[str, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    for wide in (60, 200):
        terminal = Terminal(["status"], tmp_path, environment, (wide, 50))
        assert terminal.end() == 0
        assert "\x1b[31mfailed\x1b[0m" in terminal.text
        shown = [re.sub(r"\x1b\[\d+m", "", line) for line in terminal.text.splitlines()]
        assert max(len(line) for line in shown[:-1]) <= wide
        assert ("host" in shown[0]) is (wide == 200)


def test_watch_draws_again_until_ctrl_c(
    runs: dict[str, Path], environment: dict[str, str], tmp_path: Path, bases: list[Run]
) -> None:
    terminal = Terminal(["status", "--watch"], tmp_path, environment, (200, 8))
    terminal.until("10 runs: 1 completed")
    assert "more above" in terminal.text  # eight lines do not hold them all; what needs somebody is there
    assert "(OSError: disk full at night)" in terminal.text
    write_run(tmp_path / "runs", seeded(bases[1], 7), "failed")
    terminal.until("11 runs: 1 completed")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    assert terminal.text.rstrip().splitlines()[-1].startswith("11 runs")  # and the last look stays on the screen


# --- retry -------------------------------------------------------------------------------------------------------


def test_retry_makes_runs_planned_that_the_same_command_takes_up(command: Command, runs: dict[str, Path]) -> None:
    checkpoint = b"weights"
    for path in runs.values():
        (path / "checkpoint.pt").write_bytes(checkpoint)
    ids = {state: read_json(path / "tracking.json") for state, path in runs.items()}
    before = {s: read_status(p) for s, p in runs.items()}
    done = command("retry", "--state", "failed,lost,diverged")
    assert done.returncode == 0, done.stderr
    told = dict(line.split("  ") for line in done.stdout.splitlines())
    assert told == {
        runs["failed"].name: "was failed: goes on from its checkpoint",
        runs["lost"].name: "was lost: goes on from its checkpoint",
        runs["diverged"].name: "was diverged: starts anew",
    }
    for state, path in runs.items():
        if state in ("failed", "lost", "diverged"):
            assert read_status(path) == Status(State.PLANNED)
        else:
            assert read_status(path) == before[state]
        assert (path / "checkpoint.pt").exists() is (state != "diverged")
        assert (path / "metrics.jsonl").exists() is (state != "diverged")
        assert (read_json(path / "tracking.json") == ids[state]) is (state != "diverged")
    assert f"mixersweep train run_dir={runs['failed']}" in done.stderr
    again = command("retry", "--state", "failed,lost,diverged")
    assert (again.returncode, again.stdout) == (0, "")
    assert "no run was changed" in again.stderr


def test_retry_names_the_sweeps_own_command(command: Command, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "runs" / ".sweeps" / "fig4").mkdir(parents=True)
    write_json(tmp_path / "runs" / ".sweeps" / "fig4" / "sweep.json", {"command": "mixersweep train -m model=pk"})
    done = command("retry", "--state", "failed,lost", "--where", "epoch=3")
    assert done.stderr.splitlines() == [
        "mixersweep: 2 runs are planned again; to train what is left:",
        "mixersweep:     mixersweep train -m model=pk",
    ]


def test_retry_may_keep_a_diverged_runs_checkpoint(command: Command, runs: dict[str, Path]) -> None:
    (runs["diverged"] / "checkpoint.pt").write_bytes(b"weights")
    done = command("retry", "--state", "diverged", "--keep-checkpoint", str(runs["diverged"]))
    assert "was diverged: goes on from its checkpoint" in done.stdout
    assert (runs["diverged"] / "checkpoint.pt").exists()
    assert read_status(runs["diverged"]).state == "planned"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "required: --state"), (["--state", "completed"], "completed: not one of cancelled, diverged, failed, lost")],
)
def test_retry_wants_a_state_that_can_be_retried(
    command: Command, runs: dict[str, Path], arguments: list[str], message: str
) -> None:
    done = command("retry", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_retried_diverged_run_really_trains_again(command: Command, tmp_path: Path) -> None:
    train = ["train", *SMALL, "epochs=2", "optim.lr=1e30"]
    assert command(*train).returncode == 3
    (path,) = (p for p in (tmp_path / "runs").iterdir() if not p.name.startswith("."))
    assert command("retry", "--state", "diverged").returncode == 0
    assert read_status(path).state == "planned"
    again = command(*train)
    assert again.returncode == 3
    assert "diverged before" not in again.stderr  # it was trained, and diverged once more
    assert read_status(path).state == "diverged"


# --- cancel ------------------------------------------------------------------------------------------------------


def test_cancel_marks_what_has_not_ended(command: Command, runs: dict[str, Path]) -> None:
    done = command("cancel", "--where", "seed<50")
    assert done.returncode == 0, done.stderr
    for state, path in runs.items():
        ended = state in ("completed", "diverged", "broken")
        assert read_status(path).state == ("completed" if state == "broken" else state if ended else "cancelled")
        assert (f"{path.name}  is {state}: left alone" in done.stdout) is (
            state in ("completed", "diverged", "cancelled")
        )
    assert f"{runs['queued'].name}  was queued: cancelled" in done.stdout
    trained = command("train", f"run_dir={runs['planned']}")
    assert (trained.returncode, trained.stdout) == (1, "")
    assert "cancelled; not taken up again" in trained.stderr


def test_cancel_by_name_and_by_path(command: Command, runs: dict[str, Path]) -> None:
    done = command("cancel", runs["planned"].name, str(runs["queued"]), runs["failed"].name[-16:])
    assert done.returncode == 0, done.stderr
    states = {state: read_status(runs[state]).state for state in ("planned", "queued", "failed", "interrupted")}
    assert states == {
        "planned": "cancelled",
        "queued": "cancelled",
        "failed": "cancelled",
        "interrupted": "interrupted",
    }
    done = command("cancel", runs["completed"].name)
    assert (done.returncode, done.stdout) == (1, f"{runs['completed'].name}  is completed: left alone\n")


def test_the_job_of_a_cancelled_run_is_named(command: Command, runs: dict[str, Path]) -> None:
    set_status(runs["queued"], Status(State.QUEUED, job="123_4"))
    done = command("cancel", runs["queued"].name, PATH="/nowhere")
    said = "was queued: cancelled; job 123_4 ends when it has nothing else to do; Slurm cannot be asked here"
    assert said in done.stdout
    with pytest.raises(RunCancelled, match="mixersweep retry"), hold(runs["queued"]):
        pytest.fail("a cancelled run was trained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name runs, or say which"),
        (["nowhere"], "nowhere: no such directory, and no run of this name in runs"),
        (["runs"], "a directory of many runs; say which"),
        (["sw_mlp"], "runs in runs have this in their name"),
    ],
)
def test_cancel_wants_to_know_which(
    command: Command, runs: dict[str, Path], arguments: list[str], message: str
) -> None:
    done = command("cancel", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert read_status(runs["planned"]).state == "planned"


def test_a_run_that_trains_here_is_stopped_at_once_and_can_be_retried(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    train = [*COMMAND, "train", *SMALL, "epochs=4000"]
    process = subprocess.Popen(train, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    when(lambda: any((tmp_path / "runs").glob("*/metrics.jsonl")), process)
    (path,) = (p for p in (tmp_path / "runs").iterdir() if not p.name.startswith("."))
    done = command("cancel", path.name)
    assert (done.returncode, f"pid {process.pid} on" in done.stdout) == (0, True)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert "cancelled" in err and "Traceback" not in err
    after = read_status(path)
    assert (after.state, after.is_stopping, after.pid) == ("cancelled", False, None)
    assert (
        command("retry", "--state", "cancelled").stdout == f"{path.name}  was cancelled: goes on from its checkpoint\n"
    )
    assert read_status(path).state == "planned"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(solve(config_of([])), tmp_path / "runs")


def test_a_run_on_another_host_notices_that_it_is_cancelled(
    command: Command, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process is the other host: for the command it has another name."""
    monkeypatch.setattr(status, "BEAT_EVERY", 0.05)
    monkeypatch.setattr(status, "this_host", lambda: "far/away")
    with pytest.raises(RunCancelled), hold(directory.path) as held:
        done = command("cancel", directory.path.name)
        assert "on far since" in done.stdout and "stops at its next heartbeat" in done.stdout
        assert directory.status().state == "cancelled"
        retried = command("retry", "--state", "cancelled")  # not before it has let go
        assert "has not stopped yet: left alone" in retried.stdout
        deadline = time.time() + HANGS
        while time.time() < deadline:
            held.check()
            time.sleep(0.01)
    after = directory.status()
    assert (after.state, after.is_stopping) == ("cancelled", False)
    assert command("retry", "--state", "cancelled").returncode == 0
    assert directory.status() == Status(State.PLANNED)


def test_a_run_that_completes_while_it_is_cancelled_is_completed(directory: RunDirectory) -> None:
    with hold(directory.path):
        stored = directory.status()
        set_status(directory.path, dataclasses.replace(stored, state=State.CANCELLED))
    assert directory.status().state == "completed"


def test_a_signal_that_comes_with_a_cancel_means_cancelled(directory: RunDirectory) -> None:
    with pytest.raises(RunCancelled), hold(directory.path):
        stored = directory.status()
        set_status(directory.path, dataclasses.replace(stored, state=State.CANCELLED))
        raise RunStopped("preempted by SIGTERM", 75)
    assert directory.status().state == "cancelled"


def test_a_reused_pid_is_not_signalled(command: Command, directory: RunDirectory) -> None:
    other = subprocess.Popen(["sleep", "60"])
    set_status(directory.path, Status(State.RUNNING, this_host(), other.pid, 1.0, since=NOW, heartbeat=time.time()))
    done = command("cancel", directory.path.name)
    assert "was lost: cancelled" in done.stdout
    assert other.poll() is None
    other.kill()
    other.wait()


def test_the_job_of_a_queued_run_stays_known_while_it_trains(directory: RunDirectory) -> None:
    set_status(directory.path, Status(State.QUEUED, job="77"))
    with hold(directory.path):
        assert directory.status().job == "77"
    set_status(directory.path, Status(State.PREEMPTED, job="77"))
    with hold(directory.path):
        assert directory.status().job is None  # it is taken up by hand


# --- logs --------------------------------------------------------------------------------------------------------


def test_logs_are_the_last_lines(command: Command, runs: dict[str, Path]) -> None:
    log = runs["failed"] / "log.txt"
    log.write_text("".join(f"line {n}\n" for n in range(1, 201)) + "torn")
    name = runs["failed"].name
    shown = command("logs", name).stdout.splitlines()
    assert (shown[0], shown[-1], len(shown)) == ("line 162", "torn", 40)
    assert command("logs", "-n", "2", str(runs["failed"])).stdout == "line 200\ntorn"
    assert command("logs", "-n", "0", name).stdout == ""
    assert command("logs", "-n", "1000", name).stdout == log.read_text()
    log.write_bytes(b"\xff\xfe broken bytes\n" + b"x" * 200_000 + b"\n")
    done = command("logs", "-n", "1", name)
    assert (done.returncode, len(done.stdout)) == (0, 200_001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["s_mixer"], "have this in their name"),
        ([], "required: RUN"),
        (["runs", "-n", "-1"], "--lines -1: expects a whole number, at least 0"),
        (["runs", "-n", "x"], "invalid int value"),
        (["runs"], "has no log.txt"),
    ],
)
def test_logs_tells_a_mistake(command: Command, runs: dict[str, Path], arguments: list[str], message: str) -> None:
    done = command("logs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.fixture
def followed(directory: RunDirectory, environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*COMMAND, "logs", "--follow", "-n", "1", str(directory.path)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)
    yield process
    process.kill()
    process.communicate()


def test_following_a_log_ends_with_its_run(followed: subprocess.Popen[str], directory: RunDirectory) -> None:
    assert followed.stdout is not None
    with hold(directory.path), (directory.path / "log.txt").open("a") as log:
        log.write("first\n")
        log.flush()
        assert followed.stdout.readline() == "first\n"
        log.write("second\nthird\n")
        log.flush()
        assert followed.stdout.readline() == "second\n"
        log.write("last\n")
    assert followed.stdout.read() == "third\nlast\n"
    assert (followed.wait(timeout=HANGS), followed.stderr and followed.stderr.read()) == (0, "")


def test_ctrl_c_ends_following(followed: subprocess.Popen[str], directory: RunDirectory) -> None:
    (directory.path / "log.txt").write_text("here\n")
    assert followed.stdout is not None
    assert followed.stdout.readline() == "here\n"
    followed.send_signal(signal.SIGINT)
    _, err = followed.communicate(timeout=HANGS)
    assert followed.returncode == 130
    assert "Traceback" not in err


# --- what they share ---------------------------------------------------------------------------------------------


def test_numbers_read_as_people_say_them() -> None:
    seconds = {0: "0 s", 99.4: "99 s", 100: "2 min", 3600: "60 min", 7200: "2.0 h", 200_000: "2.3 d"}
    assert {s: format_duration(s) for s in seconds} == seconds
    numbers = {0: "0", 999: "999", 1000: "1k", 65_800: "65.8k", 4.06e9: "4.06G", 12_500_000: "12.5M", 999_600: "1M"}
    assert {n: format_quantity(n) for n in numbers} == numbers
    assert format_quantity(3.94 * 2**20, "B", 1024) == "3.94 MiB"


def test_columns_fall_away_until_the_rest_fits() -> None:
    rows = [("a", "bb", "name"), ("1", "2", "x" * 10), ("11", "2", "y")]
    assert align(rows, ("a",)) == [" a  bb  name", f" 1  2   {'x' * 10}", "11  2   y"]
    assert align(rows, ("a",), 14, ("bb",)) == [" a  name", f" 1  {'x' * 10}", "11  y"]
    assert align(rows, (), 8, ("bb",))[1] == f"1   {'x' * 3}…"


def test_the_shell_is_offered_states_models_and_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    from tests.end_to_end.test_command import completed

    assert "failed" in completed("mixersweep status --state ")
    assert completed("mixersweep retry --state failed,div") == ["failed,diverged"]
    assert completed("mixersweep status --model sw_m") == ["sw_mlp"]
    assert {"--watch", "--where"} <= set(completed("mixersweep status --w"))
    offered = completed(f"mixersweep cancel runs/{runs['failed'].name[:-3]}", tmp_path)
    assert offered == [f"runs/{runs['failed'].name}"]


def test_status_sorts_and_counts(command: Command, tmp_path: Path, bases: list[Run]) -> None:
    accuracies = [0.7, 0.9, 0.8]
    for seed, accuracy in enumerate(accuracies):
        write_run(tmp_path / "runs", seeded(bases[0], seed), accuracy=accuracy)
    write_run(tmp_path / "runs", seeded(bases[2], 7), "planned")
    found = lines(command("status", "--json", "--sort", "test_accuracy"))
    assert [line["test_accuracy"] for line in found] == [None, *sorted(accuracies)]
    wrong = command("status", "--sort", "test_accurcy")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--sort test_accurcy: no such value of a run; the nearest is test_accuracy" in wrong.stderr
    texts = command("status", "--counts").stdout.splitlines()
    sizes = [bases[i].architecture.width for i in (0, 2)]
    assert [text.split() for text in texts[:3]] == [
        ["model", "width", "completed", "planned"],
        ["s_mixer", str(sizes[0]), "3", "-"],
        ["sw_mlp", str(sizes[1]), "-", "1"],
    ]


def test_two_sweeps_side_by_side(command: Command, tmp_path: Path, bases: list[Run]) -> None:
    """Of each model and width: the first has two runs of 0.7 and 0.9, the second one of 0.85."""
    paths = [
        write_run(tmp_path / "runs", seeded(bases[0], n), accuracy=accuracy)
        for n, accuracy in enumerate((0.7, 0.9, 0.85))
    ]
    for name, own in (("one", paths[:2]), ("two", paths[2:])):
        (tmp_path / "runs" / ".sweeps" / name).mkdir(parents=True)
        write_json(tmp_path / "runs" / ".sweeps" / name / "sweep.json", {"runs": [path.name for path in own]})
    done = command("diff", "one", "two")
    assert done.returncode == 0, done.stderr
    width = str(bases[0].architecture.width)
    assert done.stdout.splitlines()[1].split() == [
        *("s_mixer", width, "0.8000", "±", "0.1414", "(2)", "0.8500", "(1)", "+0.0500"),
    ]
    (line,) = lines(command("diff", "one", "two", "--json"))
    assert line["two"] == {"runs": 1, "mean": 0.85, "deviation": None}
