"""Sweeps with known effects, written as training leaves them: the records agree with the predictions."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mixersweep.compose import config_of
from mixersweep.runs import Origin, Run, solve
from tests.runs.synthetic import seeded, write_run

IMAGES = 400
MODELS = ("s_mixer", "rp_s_mixer", "sw_mlp")
WIDTHS = (700, 900, 1024)


def networks(
    models: Sequence[str] = MODELS, widths: Sequence[int] = WIDTHS, settings: Sequence[str] = ()
) -> dict[tuple[str, int], Run]:
    """A run of each model and width, with seed 0, and with equal readouts but where ``settings`` have others."""
    made = {}
    for model in models:
        for width in widths:
            asked = [f"model={model}", f"width={width}", "match=mixer", "model.head=signed_groups", *settings]
            made[model, width] = solve(config_of(asked), Origin(sweep="test", overrides=[*asked, "seed=0"]))
    return made


def images(seed: int, count: int = IMAGES) -> np.ndarray:
    """Labels of the test images."""
    return np.random.default_rng(seed).integers(0, 10, count).astype(np.int32)


def write_trained(runs_dir: Path, run: Run, correct: np.ndarray, labels: np.ndarray) -> Path:
    """A completed run that got ``correct`` of the test images right."""
    if (runs_dir / run.name).exists():  # the same network under another budget is the same run
        return runs_dir / run.name
    path = write_run(runs_dir, run, accuracy=float(correct.mean()))
    prediction = np.where(correct, labels, (labels + 1) % 10).astype(np.int32)
    probability = np.where(correct, 0.8, 0.1).astype(np.float32)
    np.savez_compressed(path / "predictions.npz", prediction=prediction, probability_of_label=probability, label=labels)
    record = json.loads((path / "result.json").read_text())
    accuracy = float(correct.mean())
    record.update(test_accuracy=accuracy, validation_accuracy=accuracy - 0.01, train_loss=1 - accuracy)
    record.update(seconds=20.0 + run.architecture.flops_per_image / 1e5)
    (path / "result.json").write_text(json.dumps(record))
    return path


def write_sweep(
    runs_dir: Path,
    accuracy: Callable[[str, int, int], float],
    *,
    models: Sequence[str] = MODELS,
    widths: Sequence[int] = WIDTHS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    settings: Sequence[str] = (),
) -> dict[tuple[str, int, int], Path]:
    """A run directory for each model, width and seed; ``accuracy`` is that on the whole population of images."""
    labels = images(0)
    difficulty = np.random.default_rng(1).uniform(-0.1, 0.1, IMAGES)
    paths = {}
    for (model, width), first in networks(models, widths, settings).items():
        for seed in seeds:
            run = seeded(first, seed)
            generator = np.random.default_rng([MODELS.index(model) if model in MODELS else 9, width, seed, 3])
            correct = generator.random(IMAGES) < accuracy(model, width, seed) + difficulty
            paths[model, width, seed] = write_trained(runs_dir, run, correct, labels)
    return paths


RATES = {0.0316: 0.5, 0.1: 0.6, 0.316: 0.55}
"""Learning rates of a search, the best inside, and their validation accuracy."""


def write_search(
    runs_dir: Path,
    *,
    models: Sequence[str] = MODELS,
    widths: Sequence[int] = WIDTHS,
    settings: Sequence[str] = (),
    rates: Mapping[float, float] = RATES,
) -> None:
    """The runs that chose the learning rate 0.1 of each model and width, with two seeds that are not reported."""
    for rate, accuracy in rates.items():
        for first in networks(models, widths, [*settings, f"optim.lr={rate}"]).values():
            for seed in (100, 101):
                write_run(runs_dir, seeded(first, seed), accuracy=accuracy)
