"""Estimate how long runs take, from completed runs of the same shape or from timings of ``plan --measure``.

The shape of a run is everything that decides how long an epoch takes: the network, the images and their processing, the
batch size; not seeds, learning rates or the number of epochs. If neither source knows a shape there is no estimate.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixersweep.errors import UserError
from mixersweep.paths import expand_home
from mixersweep.runs import Run
from mixersweep.runs.experiment import SIZES, Settings, experiment
from mixersweep.runs.files import locked, write_json
from mixersweep.runs.listing import Listed, last_rows, read_listed

CALIBRATION = ".calibration.json"
"""The file in the directory of runs that stores the timings of ``plan --measure``."""

_IRRELEVANT = ("seed", "seeds", "epochs")
_RELEVANT_OF_EXECUTION = ("gradient_checkpointing", "compile", "accumulation")
_IRRELEVANT_OF_OPTIM = (
    *("lr", "weight_decay", "schedule", "warmup_epochs", "warmup_lr", "min_lr", "milestones", "milestone_factor"),
    *("label_smoothing", "lr_scaling", "base_fan_in"),
)


@dataclass(frozen=True)
class Pace:
    """The seconds that an epoch takes: ``training`` alone, and ``epoch`` with evaluation and saving.

    ``set_up`` is the seconds before the first epoch; ``source`` says in words where the numbers come from. For a run
    that was in a pack (``is_pack_share``), the numbers are the pack's divided by its runs.
    """

    epoch: float
    training: float
    set_up: float
    device_kind: str
    threads: int
    source: str
    is_pack_share: bool = False


def shape(config: Settings, architecture: Settings) -> str:
    """Return the shape of a run as a text, equal for runs whose epochs are the same work, from its frozen settings."""
    content = {key: value for key, value in experiment(config).content.items() if key not in _IRRELEVANT}
    optim = {key: value for key, value in content["optim"].items() if key not in _IRRELEVANT_OF_OPTIM}
    content["optim"] = {key: value if isinstance(value, str) else bool(value) for key, value in optim.items()}
    execution = {name: config[name] for name in _RELEVANT_OF_EXECUTION if config.get(name) not in (None, False, 1)}
    sizes = {name: architecture[name] for name in SIZES}
    return json.dumps({**content, "execution": execution, "architecture": sizes}, sort_keys=True)


def shape_of(run: Run) -> str:
    """Return the shape of a planned run."""
    return shape(dataclasses.asdict(run.config), dataclasses.asdict(run.architecture))


def completed_runs_like(run: Run) -> Iterator[Listed]:
    """Yield the completed runs of the same shape in the run's directory of runs."""
    folder, own_shape = expand_home(run.config.runs_dir, "runs_dir"), shape_of(run)
    for listed in _completed(folder, {run.name.rpartition("-s")[0]}):
        if shape(listed.config, listed.stored["architecture"]) == own_shape:
            yield listed


def _completed(runs_dir: Path, prefixes: Collection[str]) -> Iterator[Listed]:
    """Yield the completed runs whose names, up to the seed, are among ``prefixes``."""
    try:
        names = [name for name in os.listdir(runs_dir) if name.rpartition("-s")[0] in prefixes]  # noqa: PTH208
    except OSError:
        return
    for name in names:
        listed = read_listed(runs_dir / name)
        if listed is not None and listed.result is not None:
            yield listed


class Times:
    """The known times of runs with the shapes of ``runs``, from one directory of runs."""

    def __init__(self, runs_dir: Path, runs: Iterable[Run]) -> None:
        self._shapes = {run.fingerprint: shape_of(run) for run in runs}
        self._completed: dict[str, list[tuple[str, Pace]]] = {}
        self._read_completed(runs_dir, {run.name.rpartition("-s")[0] for run in runs})
        self.calibration = Calibration.read(runs_dir)

    def pace(self, run: Run) -> Pace | None:
        """Estimate a run's pace on the device and with the threads of its settings; None if unknown."""
        run_shape = self._shapes[run.fingerprint]
        completed = [(when, pace) for when, pace in self._completed.get(run_shape, []) if _is_comparable(run, pace)]
        if completed:
            latest = max(completed, key=lambda item: item[0])[1]
            comparable = [pace for _, pace in completed if _conditions(pace) == _conditions(latest)]
            return dataclasses.replace(
                latest,
                epoch=statistics.median(pace.epoch for pace in comparable),
                training=statistics.median(pace.training for pace in comparable),
                source=f"{len(comparable)} completed run{'' if len(comparable) == 1 else 's'}",
            )
        timings = [(when, pace) for when, pace in self.calibration.paces(run_shape) if _is_comparable(run, pace)]
        return max(timings, key=lambda item: item[0])[1] if timings else None

    def is_from_runs(self, run: Run) -> bool:
        """Whether the estimate for this run comes from completed runs."""
        return any(_is_comparable(run, pace) for _, pace in self._completed.get(self._shapes[run.fingerprint], []))

    def _read_completed(self, runs_dir: Path, prefixes: set[str]) -> None:
        """Read the paces of completed runs; only directories whose names match a shape are opened."""
        shapes = set(self._shapes.values())
        for listed in _completed(runs_dir, prefixes):
            key = shape(listed.config, listed.stored["architecture"])
            pace = _pace_of(listed) if key in shapes else None
            if pace is not None:
                self._completed.setdefault(key, []).append((str((listed.result or {}).get("finished")), pace))


@dataclass
class Calibration:
    """The timings stored in ``.calibration.json``, one for each shape, device kind and number of threads."""

    path: Path
    entries: list[dict[str, Any]]

    @classmethod
    def read(cls, runs_dir: Path) -> Calibration:
        """Read the stored timings, none if there is no file; raises ``UserError`` if the file cannot be read."""
        path = runs_dir / CALIBRATION
        try:
            stored = json.loads(path.read_text())
            entries = stored["entries"] if stored["schema_version"] == 1 else []
            assert isinstance(entries, list)
        except FileNotFoundError:
            entries = []
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it, and plan --measure makes it anew") from None
        return cls(path, entries)

    def paces(self, shape: str) -> list[tuple[str, Pace]]:
        """Return the time of measurement (ISO 8601) and the pace of each timing of a shape."""
        names = ("epoch", "training", "set_up", "device_kind", "threads")
        entries = [entry for entry in self.entries if entry["shape"] == shape]
        return [
            (entry["measured"], Pace(**{name: entry[name] for name in names}, source="measured")) for entry in entries
        ]

    def add(self, entries: list[dict[str, Any]]) -> None:
        """Store timings; each replaces an earlier one of the same shape, device kind and number of threads."""
        self.path.parent.mkdir(parents=True, exist_ok=True)

        def key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
            return (entry["shape"], entry["device_kind"], entry["threads"])

        with locked(self.path.with_name(f"{CALIBRATION}.lock"), timeout=30):
            merged = {key(entry): entry for entry in [*Calibration.read(self.path.parent).entries, *entries]}
            self.entries = list(merged.values())
            write_json(self.path, {"schema_version": 1, "entries": self.entries})


def _conditions(pace: Pace) -> tuple[str, int, bool]:
    """Return the conditions under which paces are comparable: device kind, threads, and whether in a pack."""
    return pace.device_kind, pace.threads, pace.is_pack_share


def _is_comparable(run: Run, pace: Pace) -> bool:
    """Whether a pace was measured on the device and with the threads of a run's settings, as far as is known here."""
    device, threads = run.config.device, run.config.threads
    on_cpu = pace.device_kind == "cpu"
    return (device == "auto" or on_cpu == (device == "cpu")) and (threads in ("auto", pace.threads) or not on_cpu)


def _pace_of(listed: Listed) -> Pace | None:
    """Compute the pace of a completed run; None if its record has no times."""
    result = listed.result or {}
    environment, epochs = result.get("environment") or {}, result.get("epochs")
    if not epochs or not result.get("seconds"):
        return None
    runs_in_pack = result.get("pack_size") or 1  # the pack's time is divided among its runs
    training = result["seconds"] / epochs / runs_in_pack
    rows = last_rows(str(listed.path / "metrics.jsonl")) if (listed.path / "metrics.jsonl").exists() else ()
    times = [float(row["time"]) for row in rows]
    durations = [later - earlier for earlier, later in itertools.pairwise(times)]
    epoch = max(training, statistics.median(durations) / runs_in_pack) if durations else training * 1.1
    kind, threads = environment.get("device_kind", "cpu"), environment.get("threads", 1)
    return Pace(epoch, training, 0.0, kind, threads, "completed runs", is_pack_share=runs_in_pack > 1)
