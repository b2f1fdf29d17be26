"""Every command of the README and the pages is one that the program understands; those of the first steps are run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import mixersweep
from mixersweep.cli import _parser
from tests.docs.pages import PAGES, ROOT, apply, blocks, commands, name_of
from tests.speed import HANGS

SAID = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)}")
    for page in PAGES
    if page.parent.name != "extending"  # those are run, by a program that has what the page adds
    for words in commands(page)
]


def test_there_are_commands() -> None:
    assert len(SAID) > 40


@pytest.mark.parametrize("words", SAID)
def test_a_command_of_the_pages_is_understood(words: list[str], tmp_path: Path) -> None:
    program, *arguments = words
    if program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK)
    program = Path(program).name
    if program == "python":
        module = arguments[1].replace(".", "/") + ".py" if arguments[0] == "-m" else arguments[0]
        assert (ROOT / module).exists()
    elif program != "mixersweep":
        assert program in ("test", "docs", "pre-commit")
    elif "$(" not in " ".join(arguments):
        understood(arguments, tmp_path)


def understood(arguments: list[str], folder: Path) -> None:
    """Raise for flags, settings and choices that there are not, and for settings without a network."""
    if arguments == ["--version"]:
        return
    options, rest = _parser().parse_known_args(arguments)
    settings = [*getattr(options, "overrides", []), *rest, *getattr(options, "places", [])]
    assert not [word for word in rest if word.startswith("-")]
    if arguments[0] not in ("train", "plan") and not (arguments[0] == "analyze" and any("=" in s for s in settings)):
        return
    many = arguments[0] in ("plan", "analyze") or options.multirun or any(s.startswith("experiment=") for s in settings)
    assert (mixersweep.plan_sweep if many else mixersweep.plan)(*settings, f"runs_dir={folder}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands of a page are run, as on a new machine."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def run(words: list[str], folder: Path, program: Path = ROOT) -> str:
    """Run one command of a page, and return what it printed."""
    assert Path(words[0]).name == "mixersweep"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MIXERSWEEP_"))}
    home = {"HOME": str(folder / "home"), "PYTHONPATH": str(program), "OMP_NUM_THREADS": "1"}
    alone = ["threads=1"] if words[1] == "train" else []  # where others work too, threads wait for each other
    command = [sys.executable, "-m", "mixersweep", *words[1:], *alone]
    done = subprocess.run(command, cwd=folder, env={**kept, **home}, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_first_steps_are_as_they_are_told(folder: Path) -> None:
    page = ROOT / "docs" / "first_steps.md"
    printed = {" ".join(words): run(words, folder) for words in commands(page)}
    (one,) = [out for line, out in printed.items() if line.startswith("mixersweep train model=")]
    assert Path(one.strip()).name == "result.json" and one == run(["mixersweep", *TRAIN], folder)
    (several,) = [out for line, out in printed.items() if line.startswith("mixersweep train -m")]
    assert len(several.splitlines()) == 12
    assert "12 completed" in printed["mixersweep status"] or "13 completed" in printed["mixersweep status"]
    assert (folder / "report" / "report.html").exists()
    (code,) = blocks(page, "python")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/" not in done.stderr and "sw_mlp" in done.stdout


TRAIN = ["train", "model=s_mixer", "width=1024", "epochs=3", "tracking=none"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("family", {"band_mlp.py": "mixersweep/families", "band_mlp.yaml": "configs/model"}),
        ("data_set", {"stripes.py": "mixersweep/data", "stripes.yaml": "configs/data"}),
        ("optimiser", {"signum.py": "mixersweep/training", "signum.yaml": "configs/optim"}),
        ("analysis", {"movement.py": "mixersweep/analysis"}),
    ],
)
def test_what_a_page_adds_is_a_part_of_the_program(name: str, files: dict[str, str], folder: Path) -> None:
    """A copy of the program with the page's files and lines carries out the page's commands."""
    program, examples = folder.parent / "program", ROOT / "docs" / "examples" / name
    page = ROOT / "docs" / "extending" / f"{name}.md"
    for part in ("mixersweep", "configs"):
        shutil.copytree(ROOT / part, program / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file, place in files.items():
        assert f"`{place}/{file}`" in page.read_text()
        shutil.copy(examples / file, program / place / file)
    if name == "optimiser":
        (folder / "mine" / "optim").mkdir(parents=True)
        shutil.copy(examples / "lion.yaml", folder / "mine" / "optim")
    apply(page, program)
    printed = [run(words, folder, program) for words in commands(page)]
    assert printed and all(out.strip() for out in printed)
    RESULT[name](folder)


def learnt_stripes(folder: Path) -> None:
    """The images of the example are told apart, and are what its YAML says of them."""
    (record,) = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    assert record["dataset"] == "stripes" and record["test_accuracy"] > 0.5
    facts = yaml.safe_load((ROOT / "docs" / "examples" / "data_set" / "stripes.yaml").read_text())
    with np.load(folder / "home" / ".cache" / "mixersweep" / "stripes.npz") as arrays:
        pixels = arrays["train_images"] / 255
    assert facts["mean"] == [round(pixels.mean(), 4)] and facts["std"] == [round(pixels.std(), 4)]


def learnt_with_signum(folder: Path) -> None:
    """Both optimisers trained a run that is well above chance."""
    records = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    assert len(records) == 2 and all(record["test_accuracy"] > 0.2 for record in records)


def moved(folder: Path) -> None:
    """Every layer of both families moved, and the figure is drawn."""
    document = json.loads((folder / "analysis" / "movement" / "movement.json").read_text())
    assert len(document["layers"]) == 4 and all(row["moved"] > 0.01 and row["runs"] == 2 for row in document["layers"])
    suffixes = {path.suffix for path in (folder / "analysis" / "movement").iterdir()}
    assert suffixes == {".json", ".csv", ".md", ".svg", ".png"}


def trained_a_band(folder: Path) -> None:
    """The example is trained with the connections that were asked for."""
    (record,) = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    assert (record["model"], record["connections"]) == ("band_mlp", 1000)


RESULT = {"family": trained_a_band, "data_set": learnt_stripes, "optimiser": learnt_with_signum, "analysis": moved}
