"""``result.json``: the flat record of a completed run that status, reports and mirrors read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mixersweep.runs.directory import SCHEMA_VERSION, Run, sizes_of

VOLATILE = (
    "pack_size",
    "seconds",
    "images_per_second",
    "peak_memory_bytes",
    "started",
    "finished",
    "environment",
    "versions",
    "git_commit",
)
"""The keys in which two runs of the same experiment may differ."""

_ARCHITECTURE = (
    "width width_target hidden_width tokens channels expansion depth mixing_layers connections connections_target "
    "connections_counted total_connections weights weights_target density parameters stem_parameters "
    "mixing_parameters head_parameters skip_parameters skip_connections flops_per_image readout_dimension "
    "connections_real connections_real_target weights_real weights_real_target flops_target"
).split()
_MEASURED = (
    "epochs best_epoch train_loss train_accuracy validation_loss validation_accuracy test_loss test_accuracy "
    "best_validation_test_accuracy ema_validation_loss ema_validation_accuracy ema_test_loss ema_test_accuracy "
    "connections_drawn readout_rank pack_size images_per_second seconds peak_memory_bytes started finished environment "
    "versions "
    "git_commit"
).split()

KEYS = (
    *("schema_version", "fingerprint", "name", "model", "dataset", "seed", "experiment", "sweep", "overrides"),
    *_ARCHITECTURE,
    *_MEASURED,
)
"""All keys of a record, in its order."""


def planned_record(run: Run) -> dict[str, Any]:
    """The keys of a record that are known before training, in the order of the record."""
    sizes = dataclasses.asdict(run.architecture)
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": run.fingerprint,
        "name": run.name,
        "model": run.config.model.name,
        "dataset": run.config.data.name,
        "seed": run.config.seed,
        **dataclasses.asdict(run.origin),
        **{key: sizes[key] for key in _ARCHITECTURE},
    }


def planned_record_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """``planned_record`` for a run as it is stored (``planned.json``); raises ``KeyError`` for a missing key."""
    known = {
        "schema_version": stored["schema_version"],
        "fingerprint": stored["fingerprint"],
        "name": stored["name"],
        "model": stored["config"]["model"]["name"],
        "dataset": stored["config"]["data"]["name"],
        "seed": stored["config"]["seed"],
        **stored["origin"],
    }
    sizes = sizes_of(stored)
    return {**known, **{key: sizes[key] for key in _ARCHITECTURE}}


def completed_record(run: Run, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Build the whole record; ``measured`` has exactly the keys that training adds (None where there is no value)."""
    assert set(measured) == set(_MEASURED), set(measured) ^ set(_MEASURED)
    return {**planned_record(run), **{key: measured[key] for key in _MEASURED}}


def same_experiment_same_numbers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records agree in everything but ``VOLATILE`` keys."""
    return {k: v for k, v in one.items() if k not in VOLATILE} == {k: v for k, v in other.items() if k not in VOLATILE}
