"""What befalls a run from outside: kills, a full disk, too little memory, other people: it ends in good order."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mixersweep.runs import same_experiment_same_numbers
from tests.end_to_end.commands import COMMAND, PROBES, Commands, only, probed, rows, status, told, when
from tests.speed import HANGS

pytestmark = pytest.mark.flaky(reruns=1)
SMALL = (
    *("train", "model=s_mixer", "connections=1000", "depth=1", "batch_size=600", "threads=1", "tracking=none"),
    *("device=cpu", "ema=0.99"),
)
LONG = (*SMALL, "epochs=4000")
MEGABYTE = 2**20


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    made.close()


def assert_same_result(one: Path, other: Path) -> None:
    """But for where it was asked for."""
    records = [json.loads((only(path) / "result.json").read_text()) | {"overrides": []} for path in (one, other)]
    assert same_experiment_same_numbers(*records)
    assert told(one) == told(other)
    first, second = (np.load(only(path) / "predictions.npz") for path in (one, other))
    assert all(np.array_equal(first[name], second[name]) for name in first.files)


# --- killed ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=s_mixer", "augment.mixup=0.5", "ema=0.9"],
        ["model=sw_mlp", "optim=adamw", "stochastic_depth=0.3", "depth=2", "checkpoint.every=3"],
        ["augment=auto_augment", "workers=1", "epochs=4"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_killed_at_random_moments_it_is_the_undisturbed_run(
    overrides: list[str], commands: Commands, tmp_path: Path
) -> None:
    """With checkpoints all the time, so that many a kill finds the process writing one; probes change nothing."""
    arguments = (*SMALL, "epochs=8", *overrides)
    for runs_dir, looking in (("whole", ()), ("probed", PROBES)):
        whole = commands.run(*arguments, *looking, f"runs_dir={runs_dir}")
        assert whole.returncode == 0, whole.stderr
    draw, codes = random.Random(str(overrides)), []
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        process = commands.start(*arguments, *PROBES, "checkpoint.minutes=1e-5")
        there, before = tmp_path / "runs", time.time_ns()

        def checkpointed() -> bool:
            return any(path.stat().st_mtime_ns > before for path in there.glob("*/checkpoint.pt"))  # noqa: B023

        when(lambda: checkpointed() or process.poll() is not None, process)  # noqa: B023
        try:
            process.wait(draw.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(kill)
        _, err = process.communicate(timeout=HANGS)
        codes.append(process.returncode)
        assert process.returncode in (0, -kill, 130 if kill == signal.SIGINT else 75), err
        assert "Traceback" not in err
    assert len([code for code in codes if code != 0]) >= 3
    parts = commands.run(*arguments, *PROBES)
    assert parts.returncode == 0, parts.stderr
    assert_same_result(tmp_path / "runs", tmp_path / "whole")
    assert [row["epoch"] for row in probed(tmp_path / "runs")][-1] == told(tmp_path / "runs")[-1]["epoch"]
    assert probed(tmp_path / "runs") == probed(tmp_path / "probed")
    assert sorted(path.name for path in only(tmp_path / "runs").glob("*checkpoint*")) == ["checkpoint.pt"]


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]).returncode:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left of a disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return ballast


def test_a_full_disk_fails_the_run_and_with_room_it_goes_on(
    commands: Commands, tmp_path: Path, small_disk: Path
) -> None:
    process = commands.start(*LONG, f"runs_dir={small_disk}")
    when(lambda: len(rows(small_disk)) >= 3, process)
    ballast = fill(small_disk)
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (1, ""), err
    assert "Traceback" not in err
    reason = r"No space left on device; the last checkpoint is whole: make room, and the same command goes on"
    assert re.search(rf"error: {re.escape(str(only(small_disk)))}: {reason} \(\d+ of 4000 epochs are done\)", err)
    stored = status(small_disk)
    assert stored["state"] == "failed"
    assert "No space left on device" in stored["error"]
    assert not list(only(small_disk).glob(".*.tmp"))

    again = commands.run(*LONG, f"runs_dir={small_disk}")  # nothing has changed
    assert (again.returncode, status(small_disk)["state"]) == (1, "failed"), again.stderr
    assert "No space left on device" in again.stderr

    ballast.unlink()
    before = rows(small_disk)
    process = commands.start(*LONG, f"runs_dir={small_disk}")
    when(lambda: len(rows(small_disk)) > len(before) + 1, process)
    assert rows(small_disk)[: len(before) - 1] == before[:-1]  # the last was perhaps told, but not saved
    assert [row["epoch"] for row in rows(small_disk)] == list(range(1, len(rows(small_disk)) + 1))


def test_a_file_that_may_not_grow_fails_the_run(commands: Commands, tmp_path: Path) -> None:
    """A limit on the size of files stands for a quota, and needs no root."""
    limited = ("bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *COMMAND)
    done = commands.run(*SMALL, "epochs=2", program=limited)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "File too large; the last checkpoint is whole" in done.stderr
    assert "Traceback" not in done.stderr
    stored = status(tmp_path / "runs")
    assert (stored["state"], "File too large" in stored["error"]) == ("failed", True)
    done = commands.run(*SMALL, "epochs=2")
    assert done.returncode == 0, done.stderr


# --- memory ------------------------------------------------------------------------------------------------------


def limited_to(kilobytes: int) -> tuple[str, ...]:
    """The command with so much address space."""
    return ("bash", "-c", f'ulimit -v {kilobytes}; exec "$@"', "bash", *COMMAND)


def test_out_of_memory_says_what_fits_and_that_trains(commands: Commands, tmp_path: Path) -> None:
    arguments = ("train", "model=s_mixer", "tokens=64", "channels=64", "depth=4", "batch_size=4096", "epochs=1")
    arguments = (*arguments, "threads=1", "tracking=none", "device=cpu", "augment.mixup=0.5", "stochastic_depth=0.2")
    limit = imported_kilobytes() + 1_000_000
    done = commands.run(*arguments, program=limited_to(limit))
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(
        r"error: out of memory with 4096 images at once \(batch_size=4096, accumulation=1; width 4096, depth 4, "
        r"[\d,]+ parameters\); (\d+) fit: accumulation=(\d+) computes the same, batch_size=\1 is another experiment",
        done.stderr,
    )
    assert found, done.stderr
    assert int(found[1]) * int(found[2]) == 4096
    stored = status(tmp_path / "runs")
    assert (stored["state"], found[0].removeprefix("error: ") in stored["error"]) == ("failed", True)

    again = commands.run(*arguments, f"accumulation={found[2]}", program=limited_to(limit))
    assert again.returncode == 0, again.stderr


def test_without_a_batch_that_fits_it_says_what_else(commands: Commands, tmp_path: Path) -> None:
    arguments = ("train", "model=mlp", "width=8192", "connections=67108864", "depth=4", "threads=1", "tracking=none")
    done = commands.run(*arguments, "device=cpu", program=limited_to(imported_kilobytes() + 500_000))
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "out of memory with 128 images at once" in done.stderr
    assert "try gradient_checkpointing=true, or a narrower network" in done.stderr
    assert status(tmp_path / "runs")["state"] == "failed"


def imported_kilobytes() -> int:
    """The address space of a process that has done nothing yet but import."""
    code = "import mixersweep.training.trainer; print(open('/proc/self/status').read())"
    shown = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True).stdout
    found = re.search(r"VmPeak:\s+(\d+) kB", shown)
    if found is None or resource.getrlimit(resource.RLIMIT_AS)[1] != resource.RLIM_INFINITY:
        pytest.skip("this system does not tell or limit the address space of a process")
    return int(found[1])


# --- other people ------------------------------------------------------------------------------------------------


def test_the_run_of_a_dead_holder_is_taken_over_and_a_cancelled_one_stops(commands: Commands, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = commands.start(*LONG)
    when(lambda: len(rows(runs)) >= 1, process)
    second = commands.run(*LONG)
    assert (second.returncode, second.stdout) == (4, "")
    since = r"held by pid \d+ on \S+ since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait for it, or stop that process"
    assert re.search(since, second.stderr)
    assert f"held by pid {process.pid} on {os.uname().nodename}" in second.stderr
    process.kill()
    process.communicate()
    assert status(runs)["state"] == "running"  # as far as its directory says

    heir = commands.start(*LONG)
    when(lambda: status(runs)["pid"] == heir.pid and len(rows(runs)) >= 2, heir)
    cancelled = commands.run("cancel", str(only(runs)))
    assert cancelled.returncode == 0, cancelled.stderr
    _, err = heir.communicate(timeout=HANGS)
    assert heir.returncode == 1
    assert "cancelled" in err and "Traceback" not in err
    assert status(runs)["state"] == "cancelled"
    again = commands.run(*LONG)
    assert (again.returncode, again.stdout) == (1, "")
    assert "cancelled; not taken up again" in again.stderr


def test_a_run_cancelled_in_its_directory_alone_stops_at_a_heartbeat(commands: Commands, tmp_path: Path) -> None:
    """As from another host, which cannot signal the process."""
    runs = tmp_path / "runs"
    process = commands.start(*LONG)
    when(lambda: len(rows(runs)) >= 1, process)
    path = only(runs) / "status.json"
    path.write_text(json.dumps({**status(runs), "state": "cancelled"}))
    _, err = process.communicate(timeout=HANGS)
    assert (process.returncode, status(runs)["state"]) == (1, "cancelled"), err
    assert "Traceback" not in err
