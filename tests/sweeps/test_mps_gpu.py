"""Runs that share a real GPU as processes, through NVIDIA's own daemon."""

import shutil
from pathlib import Path

import psutil
import pytest

from mixersweep.sweeps.launchers import mps
from tests.sweeps.commands import numbers, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which(mps.CONTROL) is None, reason=f"needs {mps.CONTROL}"),
]


def test_runs_that_share_a_gpu_have_a_daemon_while_they_run_and_the_numbers_that_they_have_without(
    tmp_path: Path, digits: Path
) -> None:
    settings = ["data=digits", f"data_dir={digits}", "epochs=2", "batch_size=250", "tracking=none", "device=cuda"]
    sweep = ["train", "-m", "model=pk", "connections=1000", "seed=0,1", *settings]
    sharing = ["hydra.launcher.gpus=1", "hydra.launcher.runs_per_gpu=2", "hydra.launcher.pack=1"]
    said = {}
    for name, wanted in (("with", "true"), ("without", "false")):
        done = run(tmp_path, *sweep, *sharing, f"hydra.launcher.mps={wanted}", f"runs_dir={name}")
        assert done.returncode == 0, done.stderr
        said[name] = "by an MPS daemon of their own" in done.stderr
    assert said == {"with": True, "without": False}
    assert len(numbers(tmp_path / "with")) == 2
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
    assert mps.CONTROL not in {process.name() for process in psutil.process_iter()}
