"""Checkpoints: whole or not at all, readable without pickle, and what happens to those that cannot be read."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixersweep.errors import UserError
from mixersweep.runs import RunDirectory
from mixersweep.training.checkpoint import Checkpoint, load_checkpoint, previous
from tests.training.small import DIGITS, SIZES, Killed, StopAfter, assert_identical, directory, finished, stopped

SMALL = (*DIGITS, *SIZES, "model=mixer", "epochs=3", "batch_size=700", "ema=0.9")
PER_EPOCH = 2 + 4
"""Two steps, and a batch of validation and of test images, of the weights and of their average."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> RunDirectory:
    return finished(directory(tmp_path_factory.mktemp("undisturbed"), *SMALL, f"data_dir={digits}"))


@pytest.fixture
def interrupted(tmp_path: Path, digits: Path) -> RunDirectory:
    """Killed in its third epoch."""
    made = directory(tmp_path, *SMALL, f"data_dir={digits}")
    assert stopped(made, [StopAfter(2 * PER_EPOCH + 1, killed=True)]) == 1
    return made


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit in the middle of the weights."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def other_file(path: Path) -> None:
    path.write_text("a note")


def other_object(path: Path) -> None:
    torch.save([1, 2], path)


def remove(path: Path) -> None:
    """As a process does that is killed between the two renames of a save."""
    path.unlink()


BREAKERS = (truncate, empty, flip, other_file, other_object)


@pytest.mark.parametrize("breaker", [*BREAKERS, remove])
def test_a_broken_checkpoint_falls_back_to_the_one_before(
    breaker: Callable[[Path], None], interrupted: RunDirectory, undisturbed: RunDirectory
) -> None:
    breaker(interrupted.checkpoint)
    said: list[str] = []
    finished(interrupted, said)
    told = [line for line in said if "cannot be read" in line]
    assert len(told) == (breaker is not remove)
    assert all("checkpoint.pt: " in line and "going on from checkpoint.previous.pt" in line for line in told)
    assert "going on after epoch 1 of 3" in said
    assert_identical(interrupted, undisturbed)


@pytest.mark.parametrize("breaker", BREAKERS)
def test_with_both_broken_the_run_says_so_and_starts_nothing(
    breaker: Callable[[Path], None], interrupted: RunDirectory
) -> None:
    for path in (interrupted.checkpoint, previous(interrupted.checkpoint)):
        breaker(path)
    before = interrupted.rows()
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be read \(.+\); move it away to start anew"):
        finished(interrupted)
    assert interrupted.status().state == "failed"
    assert interrupted.rows() == before


def test_without_any_it_starts_anew(interrupted: RunDirectory, undisturbed: RunDirectory) -> None:
    for path in (interrupted.checkpoint, previous(interrupted.checkpoint)):
        path.unlink()
    said: list[str] = []
    assert_identical(finished(interrupted, said), undisturbed)
    assert said == ["on a CPU, 1 thread"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 1}, r"of another version of mixersweep \(format 1, numbers \d+; here \d+, \d+\)"),
        ({"numbers_version": 0}, r"of another version of mixersweep \(format \d+, numbers 0;"),
        ({"fingerprint": "0123456789abcdef" * 4}, r"the checkpoint of another experiment \(0123456789abcdef\)"),
    ],
)
def test_one_of_another_experiment_or_version_is_refused_by_name(
    changed: dict[str, object], message: str, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    """And the one before is not taken in its place."""
    path = tmp_path / "checkpoint.pt"
    shutil.copy(undisturbed.checkpoint, previous(path))
    torch.save(torch.load(undisturbed.checkpoint, weights_only=True) | changed, path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path, undisturbed.run.fingerprint)
    assert load_checkpoint(tmp_path / "none.pt", "0" * 64) is None


def test_what_a_checkpoint_lacks_makes_it_a_broken_one(undisturbed: RunDirectory, tmp_path: Path) -> None:
    whole = torch.load(undisturbed.checkpoint, weights_only=True)
    for field in whole:
        path = tmp_path / f"{field}.pt"
        torch.save({name: value for name, value in whole.items() if name != field}, path)
        try:
            load_checkpoint(path, undisturbed.run.fingerprint)
        except UserError as error:
            assert "cannot be read" in str(error) or field == "numbers_version"


def test_nothing_in_it_needs_pickle(undisturbed: RunDirectory) -> None:
    kept = torch.load(undisturbed.checkpoint, weights_only=True)
    assert set(kept) == {"format", "numbers_version", *(field.name for field in dataclasses.fields(Checkpoint))}
    assert json.loads(json.dumps(kept["rows"])) == undisturbed.rows()
    assert json.dumps(kept["environment"])
    assert kept["average"]


SAVE_AND_DIE = """
import os, sys
from pathlib import Path
from mixersweep.training.checkpoint import load_checkpoint

path, fingerprint = Path(sys.argv[1]), sys.argv[2]
kept = load_checkpoint(path, fingerprint)
for at in range(1, 20):
    child = os.fork()
    if child == 0:
        calls = 0

        def audit(event, arguments):
            global calls
            if event in ("open", "os.rename", "os.remove") and "checkpoint" in str(arguments[0]):
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), 9)

        sys.addaudithook(audit)
        kept.step = at
        kept.save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = load_checkpoint(path, fingerprint)
    print(at, os.WIFSIGNALED(status), found is not None and found.step in (0, *range(at + 1)), flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


def test_it_stays_whole_whenever_a_save_is_cut_off(undisturbed: RunDirectory, tmp_path: Path) -> None:
    """Killed before each of the calls of the system that a save consists of."""
    path = tmp_path / "checkpoint.pt"
    shutil.copy(undisturbed.checkpoint, path)
    command = [sys.executable, "-c", SAVE_AND_DIE, str(path), undisturbed.run.fingerprint]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    *cut_off, last = [line.split()[1:] for line in done.stdout.splitlines()]
    assert cut_off == [["True", "True"]] * 5  # open, three renames, and the removal of what is no longer there
    assert last == ["False", "True"]


def test_leftovers_of_a_kill_in_mid_write_are_removed(interrupted: RunDirectory) -> None:
    leftover = interrupted.path / ".checkpoint.next.pt.0123abcd.tmp"
    leftover.write_bytes(b"half a checkpoint")
    finished(interrupted)
    assert sorted(path.name for path in interrupted.path.iterdir() if "checkpoint" in path.name) == ["checkpoint.pt"]


def test_kept_epochs_stay_and_the_final_weights_too(tmp_path: Path, digits: Path, undisturbed: RunDirectory) -> None:
    made = directory(tmp_path, *SMALL, "checkpoint.keep=[1,3]", "checkpoint.every=2", f"data_dir={digits}")
    assert stopped(made, [StopAfter(PER_EPOCH + 3), StopAfter(4, killed=True)]) == 2
    finished(made)
    assert_identical(made, undisturbed)
    names = sorted(path.name for path in made.path.glob("checkpoint*"))
    assert names == ["checkpoint-0001.pt", "checkpoint-0003.pt", "checkpoint.pt"]
    kept = {name: torch.load(made.path / name, weights_only=True) for name in names}
    assert [len(kept[name]["rows"]) for name in names] == [1, 3, 3]
    weights = [kept[name]["model"]["head.weight"] for name in names]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_killed_at_random_moments_of_saving(tmp_path: Path, digits: Path, undisturbed: RunDirectory) -> None:
    """An exception from within a save, which is what a second Ctrl-C is, leaves what was there."""
    import mixersweep.runs.files as files

    made = directory(tmp_path, *SMALL, "checkpoint.minutes=1e-6", f"data_dir={digits}")
    draw, original = random.Random(0), files.os.fsync
    left = [0]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        original(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        for _ in range(4):
            left[0] = draw.randint(2, 12)
            stopped(made, [StopAfter(1000)])
        left[0] = 0
    assert_identical(finished(made), undisturbed)
