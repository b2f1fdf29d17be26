"""Checkpoints: all that a run needs to resume as if it had never stopped."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixersweep.errors import UserError
from mixersweep.runs import NUMBERS_VERSION
from mixersweep.runs.files import open_atomic

FORMAT = 3
BROKEN = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
)
"""The exceptions that reading a truncated checkpoint, or a file that is none, may raise."""


@dataclass
class Checkpoint:
    """The state of a run after ``len(rows)`` epochs and ``step`` steps of the next.

    ``sums``, float64 (2, steps), holds the summed loss and the correct predictions of each step so far; it is None
    between epochs. ``seconds`` is the training time of the unfinished epoch. Every random choice is a function of a
    seed, the epoch and the step, so no state of a random generator is stored.
    """

    fingerprint: str
    environment: dict[str, Any]
    started: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    sums: Tensor | None = None
    seconds: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, keep: Path | None = None) -> None:
        """Write the checkpoint atomically; the one it replaces is kept as ``previous(path)``.

        ``keep`` is the path of a second copy, which is written first.
        """
        new = path.with_name(f"{path.stem}.next{path.suffix}")
        for target in (keep, new) if keep else (new,):
            with open_atomic(target) as file:
                torch.save({"format": FORMAT, "numbers_version": NUMBERS_VERSION, **vars(self)}, file)
        if path.exists():
            path.replace(previous(path))
        new.replace(path)


def previous(path: Path) -> Path:
    """The path of the checkpoint before the last one."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of a process that was killed while writing; only the holder of the run may."""
    for leftover in path.parent.glob(f".{path.stem}*.tmp"):
        leftover.unlink(missing_ok=True)


def load_checkpoint(path: Path, fingerprint: str, report: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """Load the last readable checkpoint onto the CPU; None if there is no checkpoint.

    A broken one is reported and the one before it loaded. Raises ``UserError`` for a checkpoint of another experiment
    or version, and if all are broken.
    """
    broken: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            kept = _read(candidate, fingerprint)
        except BROKEN as error:
            broken.append(f"{candidate}: cannot be read ({(str(error).splitlines() or ['empty'])[0]})")
            continue
        if broken:
            report(f"{broken[0]}; going on from {candidate.name}")
        return kept
    if broken:
        raise UserError(f"{broken[0]}; move it away to start anew")
    return None


def _read(path: Path, fingerprint: str) -> Checkpoint:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch itself does not look at the checksums
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
    content = torch.load(path, map_location="cpu", weights_only=True)
    form, numbers = content.pop("format"), content.pop("numbers_version", None)
    if form != FORMAT or numbers != NUMBERS_VERSION:
        raise UserError(
            f"{path}: of another version of mixersweep (format {form}, numbers {numbers}; here {FORMAT}, "
            f"{NUMBERS_VERSION}); go on with that version, or move it away to start anew"
        )
    if content["fingerprint"] != fingerprint:
        raise UserError(f"{path}: the checkpoint of another experiment ({content['fingerprint'][:16]})")
    return Checkpoint(**content)
