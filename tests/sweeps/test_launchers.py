"""What every launcher has, what an unknown one is told, and a launcher that is added."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from mixersweep.compose import config_of
from mixersweep.config import Config
from mixersweep.errors import DONE, UserError
from mixersweep.paths import config_dir
from mixersweep.runs import Run, Status, read_status, set_status, solve
from mixersweep.runs.state import State
from mixersweep.sweeps import launchers, queue
from mixersweep.sweeps.expand import expand
from mixersweep.sweeps.launchers import LAUNCHERS, PROGRAM, Capacity, Launcher, StopRequest, module_of, python_path
from mixersweep.sweeps.launchers.slurm_script import submit
from mixersweep.sweeps.plan import concurrency, plan, plan_packs
from mixersweep.sweeps.sweeper import sweep
from mixersweep.training.signals import StopSignals
from tests.runs.synthetic import write_run

SWEEP = ["connections=1000", "depth=1", "device=cpu", "threads=1", "tracking=none", "seed=0,1"]


def test_every_file_of_settings_has_a_registered_launcher() -> None:
    files = {file.stem: file for file in (config_dir() / "hydra" / "launcher").glob("*.yaml")}
    assert set(files) == set(LAUNCHERS)
    assert all(OmegaConf.load(file).name == name for name, file in files.items())


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_tells_its_capacity(name: str) -> None:
    expansion = expand([*SWEEP, f"hydra/launcher={name}"], multirun=True)
    run = expansion.points[0].run
    assert run is not None
    found = module_of(name).capacity(expansion.launcher, run.config, 2)
    assert not found.on_gpu and found.at_once >= 1 and (found.cores is None) == (name != "local")
    assert callable(module_of(name).launcher)


class Toy(Launcher):
    """Gives every run up, without starting it."""

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        for run_dir in jobs:
            queue.fail(run_dir, "a toy trains nothing")
        return True


@pytest.fixture
def base() -> Run:
    return solve(config_of(SWEEP[:-1]))


@pytest.fixture
def toy(tmp_path: Path) -> list[str]:
    """A launcher's settings beside the program, and the overrides that choose it."""
    files = {"hydra/launcher/toy.yaml": "name: toy\nsize: 3\n", "experiment/small.yaml": "# @package _global_\n"}
    for name, text in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).write_text(text)
    return [f"--config-dir={tmp_path / 'own'}", *SWEEP, f"runs_dir={tmp_path / 'runs'}", "hydra/launcher=toy"]


def test_a_launcher_that_is_not_registered_is_an_error(toy: list[str]) -> None:
    with pytest.raises(UserError, match="hydra/launcher=toy: the runs of a sweep take local, slurm, ray"):
        expand(toy, multirun=True)


def test_hydras_launchers_go_with_hydras_sweepers() -> None:
    with pytest.raises(UserError, match="hydra/launcher=basic: the runs of a sweep take local, slurm, ray"):
        expand([*SWEEP, "hydra/launcher=basic"], multirun=True)
    expansion = expand([*SWEEP, "hydra/launcher=basic", "hydra/sweeper=basic"], multirun=True)
    assert plan_packs(expansion, plan(expansion)) is None


def test_a_launcher_takes_a_module_a_name_and_a_file(toy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def capacity(values: Mapping[str, Any], run_config: Config, jobs: int) -> Capacity:
        return Capacity(on_gpu=False, at_once=values["size"], cores=jobs)

    module = ModuleType("toy")
    module.__dict__.update(launcher=lambda values, folder: Toy(), capacity=capacity)
    monkeypatch.setitem(sys.modules, f"{launchers.__name__}.toy", module)
    monkeypatch.setattr(launchers, "LAUNCHERS", (*LAUNCHERS, "toy"))
    monkeypatch.setattr("mixersweep.sweeps.plan.LAUNCHERS", (*LAUNCHERS, "toy"))
    expansion = expand([*toy, "threads=auto"], multirun=True)
    rows = plan(expansion)
    assert concurrency(expansion, rows) == (3, 2)
    assert plan_packs(expansion, rows) is None  # it has no setting ``pack``
    lines: list[str] = []
    with StopSignals().installed() as signals:
        assert sweep(toy, signals, lines.append, lambda _: None) != DONE
    assert sum("failed" in line and "a toy trains nothing" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [(-9, "was killed by SIGKILL"), (3, "ended with code 3"), (0, None), (None, None)],
)
def test_a_process_that_ends_before_its_run_begins(
    tmp_path: Path, base: Run, code: int | None, error: str | None
) -> None:
    path = write_run(tmp_path / "runs", base, "planned")
    assert queue.claim(path) is not None
    queue.fail_unstarted(path, code)
    status = read_status(path)
    if error is None:
        assert status.state is State.QUEUED
    else:
        assert status == Status(State.FAILED, error=f"its process {error} before it began; see log.txt")
    set_status(path, Status(State.RUNNING))
    queue.fail_unstarted(path, 1)
    assert read_status(path).state is not State.FAILED  # it recorded its own state


def test_a_script_is_kept_only_if_slurm_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, script = tmp_path / "bin" / "sbatch", tmp_path / "sweep" / "abcd.sh"
    tool.parent.mkdir()
    script.parent.mkdir()
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    for body, kept in (("echo '17;here'", True), ("echo 'sbatch: error: no' >&2; exit 1", False)):
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
        if kept:
            assert submit("#!/bin/bash\n", script) == "17"
            assert script.read_text() == "#!/bin/bash\n"
        else:
            with pytest.raises(UserError, match="hydra/launcher=slurm: sbatch: error: no"):
                submit("#!/bin/bash\n", script)
        assert list(script.parent.iterdir()) == [script] * kept


def test_the_program_comes_first_on_the_path_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/a:{os.pathsep}/b")
    assert python_path() == os.pathsep.join([str(PROGRAM), "/a", "/b"])
    monkeypatch.delenv("PYTHONPATH")
    assert python_path(Path("/copy")) == "/copy"
