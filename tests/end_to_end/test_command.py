"""The other verbs, help and completion: fast, and without what they do not need."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from mixersweep.kinds import MaskKind
from tests.speed import here

COMMAND = [sys.executable, "-m", "mixersweep"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env={**os.environ, **environment})


def completed(line: str, cwd: Path | None = None) -> list[str]:
    """What a shell is offered at the end of ``line``, asked as the shell asks."""
    code = "import os, sys\nos.dup2(1, 8)\nos.execv(sys.executable, [sys.executable, '-m', 'mixersweep'])"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked}, cwd=cwd
    )
    return done.stdout.split("\n")


def cpu_seconds(arguments: list[str], **environment: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments, **environment).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_tells_of_every_verb() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in ("train", "data", "completion"):
        assert verb in done.stdout
    assert run().returncode == 2
    assert run("--version").stdout.startswith("mixersweep ")


def test_the_help_of_train_has_examples_choices_and_settings() -> None:
    done = run("train", "--help")
    assert done.returncode == 0
    for text in ("mixersweep train model=pk width=1024", "rp_mixer, rp_s_mixer", "connections: auto", "Exit codes"):
        assert text in done.stdout


def test_cfg_job_prints_the_settings_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "train", "model=sw_mlp", "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0
    assert "name: sw_mlp" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["nonsense", "data nonsense", "data prepare", "completion tcsh"])
def test_a_wrong_verb_is_a_user_mistake(verb: str) -> None:
    done = run(*verb.split())
    assert done.returncode == 2
    assert "usage: mixersweep" in done.stderr


def test_data_list_names_the_sets_and_where_they_are(tmp_path: Path) -> None:
    done = run("data", "list", MIXERSWEEP_DATA=str(tmp_path))
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "fashion_mnist_10k.npz" in lines["fashion_mnist_10k"]
    assert "mixersweep data prepare fashion_mnist" in lines["fashion_mnist"]


def test_an_unknown_data_set_is_refused_with_the_nearest() -> None:
    done = run("data", "prepare", "fashion_mnst")
    assert done.returncode == 2
    assert "fashion_mnist" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_sources(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "mixersweep" in done.stdout


def test_completion_knows_verbs_keys_choices_and_runs(tmp_path: Path) -> None:
    assert {"train", "data", "completion"} <= set(completed("mixersweep "))
    assert "connections=" in completed("mixersweep train con")
    assert "model.tied=" in completed("mixersweep train model.")
    assert completed("mixersweep train model=sw") == ["model=sw_mlp"]
    assert completed("mixersweep train -m model=pk,sw") == ["model=pk,sw_mlp"]
    assert set(completed("mixersweep train model.mask=")) == {f"model.mask={kind}" for kind in get_args(MaskKind)}
    assert set(completed("mixersweep train model.tied=")) == {"model.tied=true", "model.tied=false"}
    assert "experiment=fig4_width" in completed("mixersweep train experiment=fig4")
    assert {"experiment=", "sweep.name=", "sweep.search.grow=", "hydra/launcher="} <= set(completed("mixersweep plan "))
    assert completed("mixersweep train -m sweep.infeasible=n") == ["sweep.infeasible=nearest"]
    assert completed("mixersweep train -m hydra/launcher=s") == ["hydra/launcher=slurm"]
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "fig4_mine.yaml").write_text("")
    assert completed("mixersweep train --config-dir own experiment=fig4_m", tmp_path) == ["experiment=fig4_mine"]
    assert completed("mixersweep train experiment=fig4_m", tmp_path) == [""]
    assert "fashion_mnist" in completed("mixersweep data prepare fash")
    (tmp_path / "runs" / "pk-w1-c1-x-s0-0123456789abcdef").mkdir(parents=True)
    (tmp_path / "runs" / "pk-w1-c1-x-s0-0123456789abcdef" / "config.yaml").write_text("")
    assert completed("mixersweep train run_dir=", tmp_path) == ["run_dir=runs/pk-w1-c1-x-s0-0123456789abcdef"]
    assert completed("mixersweep logs p", tmp_path) == ["pk-w1-c1-x-s0-0123456789abcdef"]
    assert completed("mixersweep cancel runs/pk", tmp_path) == ["runs/pk-w1-c1-x-s0-0123456789abcdef"]
    (tmp_path / "runs" / ".sweeps" / "fig4").mkdir(parents=True)
    assert completed("mixersweep status --sweep ", tmp_path) == ["fig4"]
    assert completed("mixersweep diff f", tmp_path) == ["fig4"]
    assert set(completed("mixersweep report --x chan")) == {"channels", "channels_over_tokens"}


def test_completion_knows_the_settings_of_launchers() -> None:
    of_slurm = completed("mixersweep train -m hydra/launcher=slurm hydra.launcher.")
    assert {"hydra.launcher.partition=", "hydra.launcher.time="} <= set(of_slurm)
    assert "hydra.launcher.warm=" not in of_slurm
    assert set(completed("mixersweep train hydra.launcher.wait=")) == {
        f"hydra.launcher.wait={v}" for v in ("true", "false")
    }
    assert completed("mixersweep train hydra/launcher=slurm hydra.launcher.cpus=") == ["hydra.launcher.cpus=auto"]


def test_completion_does_not_ask_each_of_thousands_of_runs(tmp_path: Path) -> None:
    """Of a run that is not there but by name it opens nothing, and lists the directory once."""
    for number in range(5000):
        (tmp_path / "runs" / f"pk-w1-c1-x-s{number}-{number:016x}").mkdir(parents=True)
    code = "import os, sys; from mixersweep import completer; seen = []\n"
    code += "counted = ('open', 'os.scandir', 'os.listdir')\n"
    code += "sys.addaudithook(lambda event, _: seen.append(event) if event in counted else 0)\n"
    code += "stat = os.stat; os.stat = lambda *a, **k: seen.append('stat') or stat(*a, **k)\n"
    code += "assert len(completer.runs('pk')) == len(completer.run_dirs('runs/')) == 5000\n"
    code += "assert seen == ['os.scandir'] * 2, seen[:9]"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_completion_import_nothing_heavy() -> None:
    code = "import sys; from mixersweep import completer, cli; cli._parser(); completer.overrides('model=')\n"
    code += "completer.overrides('con'), completer.x_axes('w'), completer.overrides('hydra.launcher.t')\n"
    code += "heavy = {'hydra', 'omegaconf', 'torch', 'wandb', 'pydantic', 'numpy'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_costs_little() -> None:
    """The promise is 0.5 s and 1.5 s of CPU; twice that is allowed here, since CI machines are noisy."""
    assert min(cpu_seconds(["--help"]) for _ in range(3)) < here(1.0)
    assert min(cpu_seconds(["train", "--help"]) for _ in range(3)) < here(3.0)
