"""The stopwatch in the trainer: what it takes as an epoch, and that it leaves nothing behind."""

from pathlib import Path

import pytest

from mixersweep.compose import config_of
from mixersweep.runs import solve
from mixersweep.training import timing
from mixersweep.training.timing import time_training
from tests.training.small import DIGITS, SIZES


@pytest.mark.parametrize(
    ("batch_size", "steps"),
    [(300, 5), (32, timing.ENOUGH_STEPS)],  # an epoch after the first; of a long first one, as many as are enough
)
def test_short_epochs_are_timed_whole_and_long_ones_by_their_steps(
    batch_size: int, steps: int, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = (*DIGITS, *SIZES, f"data_dir={digits}", "epochs=9", f"batch_size={batch_size}")
    timed = time_training(solve(config_of([*settings])))
    assert timed.steps == steps
    assert timed.epoch > timed.training > 0 and timed.set_up > 0
    assert not list(tmp_path.iterdir())
