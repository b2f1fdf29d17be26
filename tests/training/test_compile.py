"""``compile=true``: the losses of eager training, one compiled step for all of it, none the next time."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.training.small import DIGITS, SIZES, directory, finished, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile has no compiler here"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch's own look at what it traces
]
LOSSES = ("train_loss", "validation_loss", "test_loss", "ema_test_loss")


def trained(tmp_path: Path, *overrides: str) -> tuple[list[dict[str, float]], dict[str, Counter[str]]]:
    """The rows of a run as another process would train it, and what torch counted at compiling."""
    torch._dynamo.reset()
    counters.clear()
    made = finished(directory(tmp_path, *DIGITS, *SIZES, "ema=0.9", "optim.lr=0.01", *overrides))
    counted = {kind: Counter(values) for kind, values in counters.items()}
    torch._dynamo.reset()
    return rows(made), counted


@pytest.mark.parametrize("model", ["s_mixer", "rp_s_mixer", "sw_mlp"])
def test_compiled_it_trains_the_same_and_compiles_once(
    model: str, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs, whose last batches are smaller, with evaluations between, of the network and of its average."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    overrides = (f"model={model}", f"data_dir={digits}")
    eager, counted = trained(tmp_path / "eager", *overrides)
    assert counted.get("stats", Counter())["unique_graphs"] == 0

    first, counted = trained(tmp_path / "first", *overrides, "compile=true")
    assert counted["stats"]["unique_graphs"] == 1
    assert counted["inductor"]["fxgraph_cache_miss"] == 2, "forward and backward"
    # What is fused is rounded elsewhere, which a small learning rate carries on as it is: a loss is off by no more than
    # what its own sum of 10 exponentials and their logarithm round, twice.
    near = 2 * 12 * torch.finfo(torch.float32).eps
    for compiled, plain in zip(first, eager, strict=True):
        assert {k: compiled[k] for k in LOSSES} == pytest.approx({k: plain[k] for k in LOSSES}, rel=near)

    again, counted = trained(tmp_path / "again", *overrides, "compile=true")
    found = counted["inductor"]
    assert (found["fxgraph_cache_miss"], found["fxgraph_cache_hit"], found["fxgraph_cache_bypass"]) == (0, 2, 0)
    assert again == first
