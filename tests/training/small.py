"""Small runs in this process, interrupted and compared."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixersweep.compose import config_of
from mixersweep.errors import RunStopped
from mixersweep.runs import RunDirectory, same_experiment_same_numbers, solve
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train

TIMES = ("time", "seconds", "images_per_second")
DIGITS = ("data=digits", "epochs=2", "batch_size=300", "threads=1", "tracking=none", "device=cpu")
SIZES = ("depth=2", "tokens=6", "channels=5")


class StopAfter(StopSignals):
    """A stop at the n-th check, after a batch of training or evaluation: by a signal, or killed on the spot."""

    def __init__(self, checks: int, *, killed: bool = False) -> None:
        super().__init__()
        self.left, self.killed = checks, killed

    def check(self) -> None:
        """Raise at the n-th call."""
        self.left -= 1
        if self.left == 0:
            raise Killed if self.killed else RunStopped("preempted", 75)


class Killed(BaseException):
    """The end of a process that has no time to save."""


def directory(tmp_path: Path, *overrides: str) -> RunDirectory:
    """The run directory of a config."""
    return RunDirectory.create(solve(config_of(list(overrides))), tmp_path)


def finished(made: RunDirectory, said: list[str] | None = None) -> RunDirectory:
    """Trained to its end."""
    train(made, StopSignals(), (said if said is not None else []).append)
    return made


def stopped(made: RunDirectory, signals: Iterable[StopSignals]) -> int:
    """Trained and stopped again and again; how many of the stops came before its end."""
    count = 0
    for each in signals:
        try:
            train(made, each, lambda text: None)
        except (RunStopped, Killed):
            count += 1
        else:
            break
    return count


def content(made: RunDirectory) -> dict[str, Any]:
    """All tensors of the last checkpoint, by name."""
    kept = torch.load(made.checkpoint, weights_only=True)
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")

    for part in ("model", "optimizer", "scaler", "average"):
        walk(kept[part], part)
    assert any(name.startswith("model") for name in found)
    return found


def rows(made: RunDirectory) -> list[dict[str, Any]]:
    """The rows, but for what a clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in made.rows()]


def assert_identical(one: RunDirectory, other: RunDirectory) -> None:
    """The same run bit for bit: weights, optimiser, averages, rows, predictions, record."""
    mine, theirs = content(one), content(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert rows(one) == rows(other)
    first, second = (np.load(made.predictions) for made in (one, other))
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    assert same_experiment_same_numbers(one.result() or {}, other.result() or {})
