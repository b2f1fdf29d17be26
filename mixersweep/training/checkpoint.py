"""All that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mixersweep.errors import UserError
from mixersweep.runs.files import written_whole

FORMAT = 1


@dataclass
class Checkpoint:
    """The state after ``len(rows)`` epochs. Random choices are seeded by epoch, so there is no random state in it."""

    fingerprint: str
    model: dict[str, Any]
    optimizer: dict[str, Any]
    environment: dict[str, Any]
    started: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it whole."""
        with written_whole(path) as file:
            torch.save({"format": FORMAT, **vars(self)}, file)


def load_checkpoint(path: Path, fingerprint: str, device: torch.device) -> Checkpoint | None:
    """The checkpoint at ``path``, None where there is none; a broken one, or one of another experiment, is refused."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); move it away to start anew") from None
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path}: a checkpoint of another version of mixersweep; move it away to start anew")
    if content["fingerprint"] != fingerprint:
        raise UserError(f"{path}: the checkpoint of another experiment ({content['fingerprint'][:16]})")
    return Checkpoint(**content)
