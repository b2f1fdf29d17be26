"""W&B beside jobs of a real Slurm, with the real client against a server here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixersweep.runs.files import read_json
from tests.slurm.cluster import frozen, job_log, missing, slurm, until
from tests.slurm.test_slurm import EPOCHS, SLURM, idle, run_of, tiny
from tests.speed import HANGS
from tests.sweeps.commands import environment
from tests.tracking.conftest import server
from tests.tracking.loopback import Loopback
from tests.tracking.training import epochs

__all__ = ["idle", "server", "tiny"]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.flaky(reruns=1),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def test_a_requeued_jobs_runs_have_every_epoch_once_under_one_id(
    tmp_path: Path, tiny: list[str], server: Loopback
) -> None:
    tracked = ["tracking=wandb", "tracking.timeout=60", "tracking.report=false"]
    command = [sys.executable, "-m", "mixersweep", *tiny, *SLURM, "hydra.launcher.runs_per_job=2", "seed=0,1", *tracked]
    of_wandb = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    known = {**environment(tmp_path), **of_wandb}
    with subprocess.Popen(command, cwd=tmp_path, env=known, stderr=subprocess.PIPE, text=True) as process:
        paths = [run_of(tmp_path / "runs", seed) for seed in (0, 1)]
        with frozen(*paths) as jobs:
            until(lambda: len(server.runs) == 2 and all(stored.lines for stored in server.runs.values()))
            slurm("scontrol", "requeue", jobs[0])
        err = process.communicate(timeout=HANGS)[1]
    assert process.returncode == 0, err
    assert "requeued 1 times before" in job_log(tmp_path / "runs", jobs[0])
    ids = {read_json(path / "tracking.json")["id"] for path in paths}
    assert ids == server.runs.keys()
    for stored in server.runs.values():
        assert epochs(stored.received) == list(range(1, EPOCHS + 1))
        assert stored.exit_code == 0
    assert [line for line in err.splitlines() if "W&B" in line] == [f"mixersweep: W&B: {server.url}/me/mixersweep"]
