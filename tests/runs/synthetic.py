"""Run directories as training leaves them, written without training: ten thousand in some seconds."""

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixersweep.compose import config_of
from mixersweep.runs import Origin, Run, Status, completed_record, fingerprint, planned_record, solve
from mixersweep.runs.record import KEYS
from mixersweep.runs.status import this_host

NOW = 1_700_000_000.0
ROW_KEYS = "train_loss train_accuracy validation_loss validation_accuracy test_loss test_accuracy".split()


def shapes(models: Sequence[str] = ("s_mixer", "rp_s_mixer", "sw_mlp"), widths: Sequence[int] = (512, 700, 900, 1024)):
    """A run of each model and width, seed 0."""
    return [
        solve(config_of([f"model={model}", f"width={width}"]), Origin(sweep="fig4", overrides=[f"model={model}"]))
        for model in models
        for width in widths
    ]


def seeded(run: Run, seed: int) -> Run:
    """The same experiment with another seed."""
    config = dataclasses.replace(run.config, seed=seed)
    return Run(config, run.architecture, run.origin, fingerprint(config, run.architecture))


def accuracy_of(run: Run) -> float:
    """A test accuracy that grows a little with width, and a little noise that is the run's own."""
    noise = random.Random(run.fingerprint).gauss(0, 0.004)
    return min(0.99, 0.8 + 0.01 * run.architecture.width**0.25 + noise)


def row_of(run: Run, epoch: int, accuracy: float) -> dict[str, Any]:
    """A row of ``metrics.jsonl``."""
    share = epoch / run.config.epochs
    values = [1.5 - share, accuracy * share, 1.6 - share, accuracy * share - 0.01, 1.6 - share, accuracy * share]
    return {
        "epoch": epoch,
        "time": NOW + 2.0 * epoch,
        "learning_rate": 0.1 * (1 - share),
        **dict(zip(ROW_KEYS, values, strict=True)),
        "images_per_second": 4500.0,
        "seconds": 1.9,
    }


def record_of(run: Run, accuracy: float, seconds: float = 57.0) -> dict[str, Any]:
    """The record of a completed run."""
    epochs = run.config.epochs
    last = row_of(run, epochs, accuracy)
    measured = {
        "epochs": epochs,
        "best_epoch": epochs - 1,
        **{key: last[key] for key in ROW_KEYS},
        "best_validation_test_accuracy": accuracy - 0.001,
        "images_per_second": epochs * run.config.data.train_images * (1 - run.config.validation) / seconds,
        "seconds": seconds,
        "peak_memory_bytes": 400_000_000,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "environment": {"device_kind": "cpu", "threads": 1, "compile": False, "storage": "sparse", "world_size": 1},
        "versions": {"mixersweep": "0"},
        "git_commit": None,
    }
    none = dict.fromkeys(key for key in KEYS if key not in planned_record(run))
    return completed_record(run, {**none, **measured})


def write_run(
    runs_dir: Path,
    run: Run,
    state: str = "completed",
    *,
    epoch: int | None = None,
    accuracy: float | None = None,
    seconds: float = 57.0,
    frozen: str | None = None,
    **status: Any,
) -> Path:
    """One directory; ``epoch`` rows of metrics (all of a completed run's), ``status`` as further fields of that."""
    path = runs_dir / run.name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(frozen or _frozen(run))
    (path / "planned.json").write_text(json.dumps(_stored(run), indent=2))
    known = {"host": this_host(), "pid": 2**22 + 1, "pid_started": 1.0, "since": NOW, "heartbeat": NOW + 60}
    held = {} if state in ("planned", "queued") else known
    (path / "status.json").write_text(json.dumps(dataclasses.asdict(Status(state, **{**held, **status}))))
    (path / "tracking.json").write_text(json.dumps({"id": f"{run.fingerprint[:16]}-0000"}))
    accuracy = accuracy_of(run) if accuracy is None else accuracy
    rows = run.config.epochs if state == "completed" else epoch or 0
    if rows:
        lines = [json.dumps(row_of(run, number, accuracy)) + "\n" for number in range(1, rows + 1)]
        (path / "metrics.jsonl").write_text("".join(lines))
    if state == "completed":
        (path / "result.json").write_text(json.dumps(record_of(run, accuracy, seconds), indent=2) + "\n")
    return path


def write_many(
    runs_dir: Path, count: int, state: Callable[[int], str] = lambda _: "completed", base: Sequence[Run] = ()
) -> list[Path]:
    """``count`` directories of the shapes of ``base`` with seeds 0, 1, ...; ``state`` of the i-th."""
    base = base or shapes()
    templates = [(run, _frozen(run)) for run in base]
    paths = []
    for number in range(count):
        first, template = templates[number % len(templates)]
        run = seeded(first, number // len(templates))
        frozen = template.replace(first.fingerprint, run.fingerprint).replace(first.name, run.name)
        frozen = frozen.replace("  seed: 0\n", f"  seed: {run.config.seed}\n")
        chosen = state(number)
        epoch = 0 if chosen in ("planned", "queued") else 3
        paths.append(write_run(runs_dir, run, chosen, epoch=epoch, frozen=frozen))
    return paths


def _stored(run: Run) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": run.name,
        "fingerprint": run.fingerprint,
        "origin": dataclasses.asdict(run.origin),
        "config": dataclasses.asdict(run.config),
        "architecture": dataclasses.asdict(run.architecture),
    }


def _frozen(run: Run) -> str:
    return yaml.safe_dump(_stored(run), sort_keys=False)
