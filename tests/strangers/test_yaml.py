"""YAML of one's own: what is none, and what it reads otherwise than a person does."""

from pathlib import Path

import pytest

from mixersweep.sweeps.expand import expand
from tests.strangers.conftest import Command
from tests.strangers.test_sweeps import PACKAGE, experiment


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (
            "hydra: {mode: MULTIRUN, launcher: {time: 12:00:00}}\n",
            2,
            "12:00:00 is the number 43200 to YAML; write '12:00:00'",
        ),
        ("hydra:\n  launcher:\n    time: 1:30\n", 4, "1:30 is the number 90 to YAML; write '1:30'"),
        ("hydra: {launcher: {sbatch: {begin: 16:00}}}\n", 2, "16:00 is the number 960 to YAML; write '16:00'"),
        ("seed: 010\n", 2, "010 is the number 8 to YAML; write '010'"),
        ("hydra:\n\tmode: MULTIRUN\n", 3, "no YAML: found character"),
        ("depth: [1, 2\nwidth: 3\n", 3, "no YAML: did not find expected ',' or ']'"),
        ("depth: 1\ndepth: 2\n", 3, "no YAML: found duplicate key depth"),
        ("depth: 'two\n", 3, "no YAML: found unexpected end of stream"),
    ],
)
def test_a_mistake_is_a_line_with_its_place(
    mixersweep: Command, here: Path, verb: str, content: str, line: int, message: str
) -> None:
    own = experiment(here, PACKAGE + content)
    code, out, said = mixersweep(verb, *own)
    assert (code, out) == (2, "")
    assert said.startswith(f"mixersweep: error: {here}/own/experiment/mine.yaml:{line}: {message}"), said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("content", [b"- depth: 1\n", b"depth\n", b"depth: 1 # gr\xf6\xdfe\n"])
def test_a_file_of_something_else_is_named(mixersweep: Command, here: Path, content: bytes) -> None:
    own = experiment(here, "")
    (here / "own/experiment/mine.yaml").write_bytes(content)
    code, _, said = mixersweep("plan", *own)
    assert code == 2
    assert said.startswith(f"mixersweep: error: {here}/own/experiment/mine.yaml: ") and len(said.splitlines()) == 1


def test_a_choice_of_ones_own_is_looked_at_too(mixersweep: Command, here: Path) -> None:
    (here / "own/optim").mkdir(parents=True)
    (here / "own/optim/mine.yaml").write_text("defaults:\n\t- sgd\n")
    code, _, said = mixersweep("train", f"--config-dir={here}/own", "optim=mine")
    assert code == 2
    assert said.startswith(f"mixersweep: error: {here}/own/optim/mine.yaml:2: no YAML") and len(said.splitlines()) == 1


@pytest.mark.parametrize("time", ["'12:00:00'", "90", "'1-12:00:00'", "08:30:00"])
def test_times_that_are_what_they_look_like_are_taken(here: Path, time: str) -> None:
    content = f"{PACKAGE}defaults:\n  - override /hydra/launcher: slurm\nhydra: {{launcher: {{time: {time}}}}}\n"
    assert str(expand(experiment(here, content)).launcher["time"]) == time.strip("'")
