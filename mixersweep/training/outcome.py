"""What a finished run adds to its record: its last and its best epoch, its speed, and where it ran."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch

from mixersweep.training.checkpoint import Checkpoint
from mixersweep.training.environment import peak_memory_bytes, versions


def outcome(
    state: Checkpoint, images: int, device: torch.device, git_commit: str | None, start: dict[str, Any], pack_size: int
) -> dict[str, Any]:
    """The results of a finished run, as a dict for its record; the best epoch is that of the best validation accuracy.

    ``images`` is the number of training images, ``start`` what was measured before the first step (``readout``),
    ``pack_size`` the number of runs that trained as one. Speed and seconds are those of this run, peak memory in bytes
    that of the whole pack.
    """
    rows = state.rows
    last = rows[-1]
    validated = [row for row in rows if row["validation_accuracy"] is not None]
    best = max(validated, key=lambda row: (row["validation_accuracy"], -row["epoch"]), default=None)
    seconds = sum(row["seconds"] for row in rows)
    names = [f"{split}_{kind}" for split in ("train", "validation", "test") for kind in ("loss", "accuracy")]
    averaged = [f"ema_{name}" for name in names[2:]]
    return {
        "epochs": len(rows),
        "best_epoch": best and best["epoch"],
        **{name: last[name] for name in names},
        "best_validation_test_accuracy": best and best["test_accuracy"],
        **{name: last.get(name) for name in averaged},
        **start,
        "pack_size": pack_size,
        "images_per_second": len(rows) * images / seconds,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        "started": state.started,
        "finished": now(),
        "environment": state.environment,
        "versions": versions(),
        "git_commit": git_commit,
    }


def now() -> str:
    """The present time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
