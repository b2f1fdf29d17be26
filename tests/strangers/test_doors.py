"""Variables, disks, terminals and checkpoints of strangers: the right value, or one line that helps."""

import argparse
import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.errors import MixersweepError, UserError
from mixersweep.models.timm import read_checkpoint
from mixersweep.processor import torchrun_number
from mixersweep.runs import State, hold, read_status
from mixersweep.runs.files import locked, sha256_of
from mixersweep.sweeps import measure, mend
from mixersweep.sweeps.launchers import local
from mixersweep.training.environment import set_up_torch
from mixersweep.training.parallel import World
from tests.strangers.conftest import Command
from tests.training.small import directory

QUICK = ("tracking=none", "epochs=1", "threads=1", "connections=4096", "depth=1", "device=cpu", "batch_size=1500")
ROOT = str(Path(__file__).parents[2])


def command(*words: str, shell: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """``mixersweep WORD ...`` in a process, perhaps with what a shell does to its files."""
    script = f'exec "$0" -m mixersweep "$@" {shell}'
    known = {**os.environ, "PYTHONPATH": ROOT, **variables}
    return subprocess.run(["sh", "-c", script, sys.executable, *words], capture_output=True, env=known)


# --- torchrun's variables


def test_an_empty_variable_of_torchruns_is_none(mixersweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert (World().size, World().rank) == (1, 0)
    code, _, said = mixersweep("train", *QUICK)
    assert code == 0, said


@pytest.mark.parametrize("value", ["two", "-1", "1.5"])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_one_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}={value}: torchrun sets it to a whole number; unset it"):
        World()
    with pytest.raises(UserError, match=name):
        torchrun_number(name, 1)


def test_a_world_without_the_rest_of_torchruns_variables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^WORLD_SIZE=2: RANK and MASTER_ADDR and MASTER_PORT not set, which torchrun"):
        World()


# --- GPUs by name


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("NoDevFiles", []),
        ("", []),
        ("-1", []),
        ("none", []),
        ("0,1", ["0", "1"]),
        ("1,-1,2", ["1"]),
        ("0,NoDevFiles", ["0"]),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, 3", ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "3"]),
        ("MIG-GPU-8932f937/1/2", ["MIG-GPU-8932f937/1/2"]),
    ],
)
def test_gpus_are_those_that_cuda_would_see(monkeypatch: pytest.MonkeyPatch, value: str, found: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert local.visible_gpus() == found
    assert local._choose_gpus("auto", "auto") == found


# --- numbers from the environment


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [("seed", "7", 7), ("optim.lr", "0.25", 0.25), ("compile", "true", True), ("ema", "null", None)],
)
def test_a_setting_from_the_environment_is_what_it_says(
    monkeypatch: pytest.MonkeyPatch, setting: str, text: str, value: object
) -> None:
    monkeypatch.setenv("ID", text)
    found: object = config_of([f"{setting}=${{oc.env:ID}}"])
    for name in setting.split("."):
        found = getattr(found, name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["seven", "", "1.5", "[1]"])
def test_one_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ID", text)
    with pytest.raises(UserError, match=r"^seed=.*: expects a whole number, at least 0"):
        config_of(["seed=${oc.env:ID}"])


# --- file systems


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_has_others(here: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    made = directory(here / "runs", *QUICK)
    with hold(made.path):
        assert read_status(made.path).is_alive
    assert read_status(made.path).state is State.COMPLETED
    held = pytest.raises(MixersweepError, match=r"held for 0.1 s by another process; where there is none, remove it")
    with locked(here / "lock"), held, locked(here / "lock", timeout=0.1):
        pass
    with locked(here / "lock", timeout=0.1):
        pass


@contextmanager
def read_only() -> Iterator[Path]:
    """A folder to stand in, where nobody may write once it is closed (``close``): root becomes somebody else."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    who, where = os.geteuid(), Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.seteuid(who)
        os.chdir(where)
        for path in folder.rglob("*"):
            path.chmod(path.stat().st_mode | stat.S_IRWXU)
        shutil.rmtree(folder)


IMPORTED = (ProcessPoolExecutor, measure, mend)
"""What commands import when they are asked to: somebody else may not read the interpreter's files."""


def close(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_what_is_done_is_told_where_nobody_may_write(mixersweep: Command) -> None:
    with read_only() as folder:
        runs = f"runs_dir={folder}/runs"
        words = ("train", "-m", "seed=0", *QUICK, runs, "hydra.launcher.warm=false")
        code, out, said = mixersweep(*words)
        assert code == 0, said
        run = Path(out.strip()).parent
        close(folder)
        for place in (folder, folder.parent):  # the second is not where the sweep says that it was typed
            os.chdir(place)
            again = mixersweep(*words)
            assert again[:2] == (0, out), again[2]
        os.chdir(folder)
        again = mixersweep("train", *QUICK, runs)
        assert again[:2] == (0, out), again[2]
        assert mixersweep("status", str(folder / "runs"))[0] == 0
        assert mixersweep("plan", *QUICK, runs)[0] == 0
        code, _, said = mixersweep("cancel", str(run))
        assert code == 1
        assert said == f"mixersweep: error: {run}/.lock: cannot be written or read: Permission denied\n"
        code, _, said = mixersweep("plan", *QUICK, runs, "seed=1", "patch_size=8", "--measure")
        assert code == 1 and said.endswith(
            "/runs/.calibration.json.lock: cannot be written or read: Permission denied\n"
        )
        code, _, said = mixersweep("train", *QUICK, runs, "seed=1")
        assert code == 2 and f"runs_dir={folder}/runs: cannot be written: Permission denied" in said


# --- terminals


def test_a_terminal_that_is_not_utf_8_gets_what_it_can_show(here: Path) -> None:
    (here / "runs").mkdir()
    run = directory(here / "runs", *QUICK)
    (run.path / "status.json").write_text(json.dumps({"state": "failed", "error": "größe → ∞"}))
    done = command("status", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and "größe ? ?".encode("latin-1") in done.stdout
    done = command("status", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"gr??e ? ?" in done.stdout


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(here: Path, shell: str) -> None:
    run = directory(here / "runs", *QUICK)
    done = command("status", shell=shell)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    done = command("cancel", str(run.path), shell=shell)
    assert done.returncode == 0
    assert json.loads((run.path / "status.json").read_text())["state"] == "cancelled"  # and nothing was printed into it


def test_a_full_disk_behind_stdout_is_one_line(here: Path) -> None:
    directory(here / "runs", *QUICK)
    done = command("status", shell="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"mixersweep: error: stdout: cannot be written or read: No space left on device\n"


def test_a_run_finds_its_data_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = directory(here / "runs", *QUICK, "+data.root=images", "data_dir=sets")
    assert (made.run.config.data.root, made.run.config.data_dir) == (f"{here}/images", f"{here}/sets")
    (here / "else").mkdir()
    monkeypatch.chdir(here / "else")
    again = directory(here / "runs", *QUICK, "data_dir='~/sets'")
    assert again.path == made.path and again.run.config.data_dir == "~/sets"


# --- W&B


@pytest.mark.parametrize("name", ["my/project", "a#b", "50%", "a:b", "what?", "a\\\\b"])
def test_a_project_that_wandb_refuses_is_refused_before(mixersweep: Command, here: Path, name: str) -> None:
    code, out, said = mixersweep("train", *QUICK, "tracking=wandb", f"tracking.project='{name}'")
    assert (code, out) == (2, "")
    assert said.splitlines()[-1].startswith("mixersweep: error: tracking.project=")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("words", [["sync"], ["report", "fig4"], ["workspace"]], ids=lambda words: words[0])
def test_every_verb_refuses_such_a_project(mixersweep: Command, words: list[str]) -> None:
    code, out, said = mixersweep("wandb", *words, "--project", "my/project")
    reason = "W&B takes no / in the name of a project; the user or team is --entity"
    assert (code, out, said) == (2, "", f"mixersweep: error: --project my/project: {reason}\n")


def test_a_variable_that_wandb_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import wandb; from mixersweep.tracking.client import first_line\n"
        "try: wandb.setup()\nexcept Exception as error: print(first_line(error))"
    )
    known = {**os.environ, "PYTHONPATH": ROOT, "WANDB_MODE": "sideways"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known)
    assert done.stdout.startswith("WANDB_MODE=sideways: "), done.stdout + done.stderr


# --- checkpoints


@pytest.mark.parametrize("holder", ["state_dict", "model", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_a_checkpoint_as_training_scripts_write_it_is_read(here: Path, holder: str | None, prefix: str) -> None:
    state = {"stem.proj.weight": torch.ones(2), "blocks.0.norm1.bias": torch.zeros(3)}
    named = {prefix + name: value for name, value in state.items()}
    content = named if holder is None else {holder: named, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(content, here / "last.pth.tar")
    path = here / "last.pth.tar"
    found = read_checkpoint(path, sha256_of(path, ""))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_nothing_else_in_a_checkpoint_is_made(here: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "args": subprocess.Popen}, here / "bad.pth")
    path = here / "bad.pth"
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(path, sha256_of(path, ""))


# --- compiling


@pytest.mark.parametrize("home", ["my home", None])
def test_compiled_networks_lie_where_a_compiler_can_be(
    here: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.setenv("HOME", str(here / (home or "home")))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    set_up_torch(config_of(["compile=true"]), torch.device("cpu"), lambda _: None)
    kept = os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
    assert " " not in kept
    assert kept.startswith(str(here)) == (home is None)


def test_a_network_that_cannot_be_compiled_is_one_line(here: Path) -> None:
    """In a process and with a cache of its own: what others have compiled is taken from theirs."""
    words = ("train", *QUICK, "compile=true")
    done = command(*words, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(here / "compiled"))
    said = done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" not in said
    assert "compile=true: torch could not compile the network (" in said and "compile=false trains without" in said
