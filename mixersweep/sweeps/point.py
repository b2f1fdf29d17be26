"""A point of a sweep: what ``expand`` makes of overrides, and ``search`` of a point that has no learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixersweep.budget import Architecture
from mixersweep.compose import parsed_override
from mixersweep.config import Config
from mixersweep.paths import expanded
from mixersweep.runs import Run


@dataclass(frozen=True)
class Point:
    """One run of a sweep: ``run``, or why there is none (``infeasible``), or what it waits for (``waiting``).

    ``overrides`` alone mean the same run. ``config`` and ``architecture`` are there for a waiting point too.
    """

    overrides: list[str]
    config: Config | None = None
    architecture: Architecture | None = None
    run: Run | None = None
    infeasible: str | None = None
    waiting: str | None = None

    @property
    def run_dir(self) -> Path | None:
        """The run directory, whether it is there yet or not."""
        if self.run is None:
            return None
        return expanded(self.run.config.runs_dir, "runs_dir").absolute() / self.run.name


def with_settings(overrides: Sequence[str], **values: object) -> list[str]:
    """The overrides with other values; dots in names are written as ``__``."""
    new = {key.replace("__", "."): f"{key.replace('__', '.')}={value}" for key, value in values.items()}
    there = [parsed_override(override).key_or_group for override in overrides]
    kept = [new.get(key, override) for key, override in zip(there, overrides, strict=True)]
    return [*kept, *(override for key, override in new.items() if key not in there)]
