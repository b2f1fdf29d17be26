"""A point of a sweep: one combination of settings, and the run that it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixersweep.budget import Architecture
from mixersweep.compose import parse_override
from mixersweep.config import Config
from mixersweep.paths import expand_home
from mixersweep.runs import Run


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its ``run``, or why there is none (``infeasible``), or what it waits for (``waiting``).

    Composing ``overrides`` alone gives the same run. A waiting point has ``config`` and ``architecture`` already.
    """

    overrides: list[str]
    config: Config | None = None
    architecture: Architecture | None = None
    run: Run | None = None
    infeasible: str | None = None
    waiting: str | None = None

    @property
    def run_dir(self) -> Path | None:
        """The path of the run directory, which may not exist yet; None without a run."""
        if self.run is None:
            return None
        return expand_home(self.run.config.runs_dir, "runs_dir").absolute() / self.run.name


def with_settings(overrides: Sequence[str], **values: object) -> list[str]:
    """Return the overrides with these settings replaced or added; write ``optim.lr`` as ``optim__lr``."""
    replacing = {key.replace("__", "."): f"{key.replace('__', '.')}={value}" for key, value in values.items()}
    present = [parse_override(override).key_or_group for override in overrides]
    kept = [replacing.get(key, override) for key, override in zip(present, overrides, strict=True)]
    return [*kept, *(override for key, override in replacing.items() if key not in present)]
