"""What a run sets up before it trains."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.training.environment import set_up_torch


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's settings, which are the whole process's, and what shows warnings."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize(("device", "asked"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_determinism_is_for_gpus_and_fills_no_memory(device: str, asked: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True
    set_up_torch(config_of(["model=sw_mlp", f"deterministic={asked}"]), torch.device(device), print)
    applies = device == "cuda" and asked
    assert torch.are_deterministic_algorithms_enabled() == applies
    assert torch.utils.deterministic.fill_uninitialized_memory == (not applies)
