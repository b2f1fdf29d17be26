"""Solve settings for their network and estimate what training it would cost, without torch and data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixersweep.api.settings import overrides_of, say
from mixersweep.budget import Architecture
from mixersweep.config import warnings
from mixersweep.runs.state import State
from mixersweep.sweeps import plan as planning
from mixersweep.sweeps.expand import expand, expand_one
from mixersweep.sweeps.plan import PlannedRun


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The network of a run and what the run would cost, before it is trained.

    Sizes a family does not have are None. ``weights`` is the mean number of trainable weights behind an effective
    matrix with ``connections`` nonzeros, ``parameters`` that of all trainable numbers, ``seconds`` the estimated
    training time on this machine, or None where no similar run was timed. ``architecture`` has every other size and
    count, ``record`` is what ``mixersweep plan --json`` prints, and ``overrides`` alone give the same run again.
    """

    model: str
    width: int
    hidden_width: int
    tokens: int | None
    channels: int | None
    depth: int
    expansion: float
    connections: int | float
    density: float
    weights: int | float
    parameters: int
    flops_per_image: int
    memory_bytes: int
    seconds: float | None
    state: State
    run_dir: Path | None
    overrides: list[str]
    warnings: list[str]
    architecture: Architecture = field(repr=False)
    record: dict[str, Any] = field(repr=False)


def plan(*overrides: str, **settings: object) -> Plan:
    """Solve the network that settings mean, and say what training it would cost; nothing is trained.

    ``plan(model="pk", width=1024)`` and ``plan("model=pk", "width=1024")`` are the same, and settings are those of the
    command line, ``optim__lr=0.1`` for ``optim.lr=0.1``. Raises ``UserError`` for settings that cannot be, with the
    nearest that work.
    """
    expansion = expand_one(overrides_of(overrides, settings))
    (row,) = planning.plan(expansion)
    return _make_plan(row)


def plan_sweep(*overrides: str, **settings: object) -> list[Plan]:
    """The plans of all runs that ``sweep`` with the same settings would train, those of a search first.

    Points that no network meets are told of on stderr and left out. Raises ``UserError`` for settings that cannot be.
    """
    expansion = expand(overrides_of(overrides, settings, several=True), multirun=True)
    rows = planning.plan(expansion)
    for notice in expansion.notices:
        say(f"note: {notice}")
    for reason in dict.fromkeys(row.point.infeasible for row in rows if row.point.infeasible is not None):
        say(f"infeasible: {reason}")
    return [_make_plan(row) for row in rows if row.run is not None]


def _make_plan(row: PlannedRun) -> Plan:
    run = row.run
    assert run is not None
    return Plan(
        **{name: size for name, size in vars(run.architecture).items() if name in Plan.__dataclass_fields__},
        model=run.config.model.name,
        memory_bytes=row.record["memory_bytes"],
        seconds=row.wall_seconds,
        state=row.state,
        run_dir=row.point.run_dir,
        overrides=row.point.overrides,
        warnings=warnings(run.config, run.architecture),
        architecture=run.architecture,
        record=row.record,
    )
