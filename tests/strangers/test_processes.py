"""Processes that the program starts, and what lies where they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixersweep import processor
from mixersweep.sweeps.launchers.slurm_script import environment_outside_job
from mixersweep.training.environment import choose_threads
from tests.end_to_end.commands import Commands
from tests.strangers.conftest import Command

QUICK = ("tracking=none", "epochs=1", "threads=1", "connections=4096", "depth=1", "device=cpu", "batch_size=1500")
MODULES = ("random", "numpy", "torch", "json", "psutil", "wandb", "types", "mixersweep_x", "queue", "logging")


@pytest.mark.parametrize("warm", ["true", "false"])
def test_own_modules_beside_the_data_are_nobody_elses(here: Path, warm: str) -> None:
    for name in MODULES:
        (here / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    commands = Commands(here)
    try:
        program = (
            sys.executable,
            "-c",
            "import sys; sys.path.remove(''); from mixersweep.cli import main; sys.exit(main())",
        )
        words = ("train", "-m", "seed=0", *QUICK, "tracking=wandb", f"hydra.launcher.warm={warm}")
        commands.environment |= {"WANDB_MODE": "offline", "PYTHONPATH": str(Path(processor.__file__).parents[1])}
        done = commands.run(*words, program=program)
        assert done.returncode == 0, done.stderr
        said = done.stderr + "".join(path.read_text() for path in here.rglob("*.log"))
        assert "was imported" not in said and "not fully mirrored" not in said
    finally:
        commands.close()


def test_the_module_does_not_look_where_it_is_started(here: Path) -> None:
    (here / "hydra.py").write_text("raise SystemExit('imported')\n")
    known = {**os.environ, "PYTHONPATH": str(Path(processor.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "mixersweep", "plan"], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr


def test_a_job_is_told_nothing_of_the_job_it_is_submitted_from(monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "100", "SLURM_TASKS_PER_NODE": "4"}
    of_a_job |= {"SLURMD_NODENAME": "n1", "SRUN_DEBUG": "3", "SLURM_CPU_BIND": "none"}
    kept = {"SLURM_CONF": "/etc/slurm/own.conf", "SBATCH_ACCOUNT": "mine", "SQUEUE_FORMAT": "%i"}
    for name, value in {**of_a_job, **kept}.items():
        monkeypatch.setenv(name, value)
    told = environment_outside_job()
    assert not of_a_job.keys() & told.keys()
    assert {name: told[name] for name in kept} == kept


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inlin", "module://none.there", "tkagg", "nonsense"]
)
def test_figures_need_nobodys_backend(here: Path, backend: str) -> None:
    known = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(processor.__file__).parents[1])}
    command = [sys.executable, "-m", "mixersweep", "plan", "--figure", "sizes.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr
    assert (here / "sizes.png").read_bytes().startswith(b"\x89PNG")


def group(root: Path, name: str, **files: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (root / name / file.replace("__", ".")).write_text(content)


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        ("0::/\n", {"": {"cpu__max": "50000 100000\n"}}, 0.5),
        ("0::/\n", {"": {"cpu__max": "max 100000\n"}}, None),
        ("0::/a/b\n", {"a": {"cpu__max": "150000 100000\n"}, "a/b": {"cpu__max": "max 100000\n"}}, 1.5),
        ("0::/a/b\n", {"a": {"cpu__max": "400000 100000\n"}, "a/b": {"cpu__max": "200000 100000\n"}}, 2.0),
        ("0::/../gone\n", {"": {"cpu__max": "100000 100000\n"}}, 1.0),
        (
            "4:cpu,cpuacct:/docker/x\n",
            {"cpu,cpuacct": {"cpu__cfs_quota_us": "50000\n", "cpu__cfs_period_us": "100000\n"}},
            0.5,
        ),
        ("4:cpu,cpuacct:/j\n", {"cpu/j": {"cpu__cfs_quota_us": "300000\n", "cpu__cfs_period_us": "100000\n"}}, 3.0),
        ("4:cpu:/\n1:memory:/m\n", {"cpu": {"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"}}, None),
        ("0::/\n", {"": {"cpu__max": "nonsense\n"}}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_container_is_found(
    here: Path, own: str, files: dict[str, dict[str, str]], wanted: float | None
) -> None:
    for name, contents in files.items():
        group(here / "cgroup", name, **contents)
    (here / "own").write_text(own)
    assert processor.quota(here / "cgroup", here / "own") == wanted
    assert processor.quota(here / "cgroup", here / "missing") is None


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("100000", 1), ("199999", 1), ("max", None)])
def test_a_quota_counts_where_cores_do(
    mixersweep: Command, here: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int | None
) -> None:
    group(here / "cgroup", "", cpu__max=f"{quota} 100000\n")
    (here / "own").write_text("0::/\n")
    monkeypatch.setattr(processor, "CGROUPS", here / "cgroup")
    monkeypatch.setattr(processor, "OWN_CGROUPS", here / "own")
    all_of_them = len(os.sched_getaffinity(0))
    found = processor.cores()
    assert len(found) == (cores or all_of_them) and set(found) <= os.sched_getaffinity(0)
    assert choose_threads("auto") == len(found)
    assert mixersweep("plan", "-m", "seed=0,1,2", "threads=1", "device=cpu", "hydra.launcher.jobs=auto")[0] == 0
