"""All that a run needs to go on as if it had never stopped."""

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
from mixersweep.runs.files import written_whole

FORMAT = 2


@dataclass
class Checkpoint:
    """The state after ``len(rows)`` epochs and ``step`` steps of the next, whose ``sums`` are those so far.

    Every random choice is a function of a seed, the epoch and the step, so the random state is the position itself.
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

    def save(self, path: Path) -> None:
        """Write it whole, and keep the one before as ``previous(path)`` until the next."""
        new = path.with_name(f"{path.stem}.next{path.suffix}")
        with written_whole(new) as file:
            torch.save({"format": FORMAT, "numbers_version": NUMBERS_VERSION, **vars(self)}, file)
        if path.exists():
            path.replace(previous(path))
        new.replace(path)


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one stands."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(
    path: Path, fingerprint: str, device: torch.device, report: Callable[[str], None] = lambda _: None
) -> Checkpoint | None:
    """The last checkpoint that can be read, None where there is none at all.

    A broken one is reported, and the one before it taken. Raises ``UserError`` for one of another experiment or
    version, and where there are only broken ones.
    """
    broken: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            content = torch.load(candidate, map_location=device, weights_only=True)
            kept = _checked(content, candidate, fingerprint)
        except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
            broken.append(f"{candidate}: cannot be read ({(str(error).splitlines() or ['empty'])[0]})")
            continue
        if broken:
            report(f"{broken[0]}; going on from {candidate.name}")
        return kept
    if broken:
        raise UserError(f"{broken[0]}; move it away to start anew")
    return None


def _checked(content: Any, path: Path, fingerprint: str) -> Checkpoint:
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("no checkpoint of mixersweep")
    form, numbers = content.pop("format"), content.pop("numbers_version", None)
    if form != FORMAT or numbers != NUMBERS_VERSION:
        raise UserError(
            f"{path}: of another version of mixersweep (format {form}, numbers {numbers}; here {FORMAT}, "
            f"{NUMBERS_VERSION}); go on with that version, or move it away to start anew"
        )
    if content["fingerprint"] != fingerprint:
        raise UserError(f"{path}: the checkpoint of another experiment ({content['fingerprint'][:16]})")
    return Checkpoint(**content)
