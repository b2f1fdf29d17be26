"""Runs that are really trained, once for all tests."""

from pathlib import Path

import pytest

from tests.training.small import directory, finished

SMALL = ("data=digits", "epochs=2", "batch_size=300", "threads=1", "tracking=none", "device=cpu", "depth=2")
KEPT = ("checkpoint.keep=[1,2]",)
MIXER = ("model=s_mixer", "tokens=6", "channels=6", *KEPT)
SW_MLP = ("model=sw_mlp", "width=36", "connections=216", *KEPT)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A directory of completed runs: three seeds of an S-Mixer, two of two SW-MLPs, one dense MLP of their width."""
    out = tmp_path_factory.mktemp("runs")
    wanted = [(*MIXER, f"seed={seed}") for seed in range(3)]
    wanted += [(*SW_MLP, f"seed={seed}") for seed in range(2)]
    wanted += [("model=sw_mlp", "width=36", "connections=1296", f"seed={seed}", *KEPT) for seed in range(2)]
    wanted += [("model=sw_mlp", "width=36", "connections=72", "seed=0", *KEPT)]
    for overrides in wanted:
        finished(directory(out, *SMALL, f"data_dir={digits}", *overrides))
    return out
