"""Sweeps as people ask for them: a launcher without -m, grids without a mode, YAML that is not what it looks like."""

import json
from pathlib import Path

import pytest

from mixersweep.compose import Composer, read_arguments
from mixersweep.sweeps.expand import expand
from tests.strangers.conftest import Command

QUICK = ("tracking=none", "epochs=1", "threads=1", "connections=4096", "depth=1", "device=cpu", "batch_size=1500")
PACKAGE = "# @package _global_\n"


def experiment(here: Path, content: str, name: str = "mine") -> tuple[str, str]:
    """An experiment of one's own, and what chooses it."""
    path = here / "own" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return f"--config-dir={here / 'own'}", f"experiment={name}"


@pytest.mark.parametrize(
    ("word", "launcher"),
    [("hydra/launcher=slurm", "slurm"), ("hydra/launcher=ray", "ray"), ("hydra.launcher.jobs=1", "local")],
)
def test_a_launcher_takes_a_run_that_is_alone(here: Path, word: str, launcher: str) -> None:
    invocation = read_arguments([word, *QUICK])
    assert (invocation.multirun, invocation.is_for_hydra) == (True, False)
    expansion = expand([word, *QUICK])
    assert (expansion.multirun, len(expansion.points), expansion.launcher["name"]) == (True, 1, launcher)


def test_one_run_by_the_local_launcher_is_a_sweep_of_one(mixersweep: Command, here: Path) -> None:
    code, out, said = mixersweep("train", "hydra.launcher.jobs=1", "hydra.launcher.warm=false", *QUICK)
    assert code == 0, said
    assert "local: 1 runs, 1 at a time" in said
    assert json.loads(Path(out.strip()).read_text())["epochs"] == 1


def test_the_launcher_and_sweeper_of_an_own_experiment_are_used(here: Path) -> None:
    own = experiment(here, f"{PACKAGE}defaults:\n  - override /hydra/launcher: slurm\n")
    assert expand(own).launcher["name"] == "slurm"
    assert read_arguments(list(own)).multirun
    assert expand([*own, "hydra/launcher=ray"]).launcher["name"] == "ray"  # the command line wins
    above = experiment(here, f"{PACKAGE}defaults:\n  - mine\n", "above")
    assert expand(above).launcher["name"] == "slurm"
    basic = experiment(
        here, f"{PACKAGE}defaults:\n  - override /hydra/sweeper: basic\nhydra:\n  mode: MULTIRUN\n", "basic"
    )
    invocation = read_arguments([*basic, "seed=1,2"])
    assert (invocation.multirun, invocation.is_for_hydra) == (True, True)


def test_hydras_own_choices_are_as_before(here: Path) -> None:
    choices = Composer([]).shared.hydra.runtime.choices
    assert choices["hydra/sweeper"] == "mixersweep" and choices["hydra/launcher"] == "local"
    assert choices["hydra/job_logging"] == choices["hydra/hydra_logging"] == "none"
    assert not read_arguments(list(QUICK)).multirun


@pytest.mark.parametrize("flags", [("--cfg", "job"), ()])
def test_a_sweeper_of_hydras_takes_no_launcher_of_ours(mixersweep: Command, flags: tuple[str, ...]) -> None:
    code, _, said = mixersweep("train", "hydra/sweeper=basic", "hydra/launcher=slurm", "-m", *QUICK)
    assert code == 2
    assert "hydra/launcher=slurm: takes the runs of the program's own sweeper; hydra/sweeper=basic goes with" in said


def test_a_sweeper_without_a_sweep_is_refused(mixersweep: Command) -> None:
    code, _, said = mixersweep("train", "hydra/sweeper=basic", *QUICK)
    assert (code, said) == (2, "mixersweep: error: hydra/sweeper=basic: sweeps with -m, or hydra.mode=MULTIRUN\n")


@pytest.mark.parametrize(
    "sweep",
    ["grids: [{model: 's_mixer,sw_mlp'}]", "over: {seed: '0,1'}", "{grids: [{seed: 0}], over: {width: '900,1024'}}"],
)
def test_grids_without_a_mode_are_a_sweep(here: Path, sweep: str) -> None:
    own = experiment(here, f"{PACKAGE}sweep:\n  {sweep}\n")
    assert read_arguments(list(own)).multirun
    expansion = expand(own)
    assert (expansion.multirun, len(expansion.points), expansion.name) == (True, 2, "mine")


def test_grids_of_the_command_line_are_a_sweep(here: Path) -> None:
    words = ["+sweep.over.seed='0,1,2'", *QUICK]
    assert read_arguments(list(words)).multirun
    assert len(expand(words).points) == 3


def test_a_mode_that_is_said_counts(here: Path) -> None:
    own = experiment(here, f"{PACKAGE}sweep:\n  over: {{seed: '0,1'}}\n")
    assert not read_arguments([*own, "hydra.mode=RUN"]).multirun
    assert len(expand([*own, "hydra.mode=RUN"]).points) == 1


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"{PACKAGE}hydra:\n  sweeper:\n    params:\n      seed: 1,2\n",
            "hydra.sweeper.params: is Hydra's own sweeper's; values to sweep over are sweep.over's",
        ),
        (
            "sweep:\n  grids: [{seed: '0,1'}]\n",
            "experiment=mine: its settings would be under `experiment`; begin the file "
            "with the line `# @package _global_`",
        ),
        ("epochs: 2\n", "begin the file with the line `# @package _global_`"),
    ],
    ids=["params", "grids without a package", "settings without a package"],
)
def test_what_would_be_ignored_is_refused(
    mixersweep: Command, here: Path, verb: str, content: str, message: str
) -> None:
    code, out, said = mixersweep(verb, *experiment(here, content), *QUICK)
    assert (code, out) == (2, "")
    assert message in said and len(said.splitlines()) == 1
    assert not (here / "runs").exists()
