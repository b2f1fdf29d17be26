"""Estimate what a sweep requests from Slurm: jobs, cores, hours, and its values for ``time=auto`` and ``mem=auto``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixersweep.errors import UserError
from mixersweep.sweeps.expand import Expansion
from mixersweep.sweeps.launchers import slurm
from mixersweep.sweeps.launchers.local import MEMORY_OF_A_RUN
from mixersweep.sweeps.memory import memory_bytes
from mixersweep.sweeps.plan import PlannedPacks, PlannedRun, parallel_seconds, plan, plan_packs
from mixersweep.sweeps.text import format_duration

TIME_FACTOR, START_SECONDS = 1.5, 300.0
"""With ``time=auto``: the factor on the estimated time of a job, and the seconds added for its start."""


@dataclass(frozen=True)
class Estimate:
    """The jobs of a sweep, and the resources that each requests.

    ``seconds`` is the estimated time of the longest job and ``core_seconds`` that of all jobs times their cores, both
    None where unknown; ``memory`` is in bytes a job.
    """

    settings: slurm.SlurmSettings
    jobs: list[list[Sequence[PlannedRun]]]
    cores: int | None
    gpus: int
    seconds: float | None
    core_seconds: float | None
    memory: float

    @property
    def lines(self) -> list[str]:
        """The number of jobs, their cores, GPUs and hours, in words."""
        largest = max(map(len, self.jobs))
        unit = "pack" if any(len(pack) > 1 for job in self.jobs for pack in job) else "run"
        content = f" of {largest} {unit}s, {min(largest, self.settings.at_once)} at once" if largest > 1 else ""
        cores = "the cluster's number of cores" if self.cores is None else f"{self.cores} core{'s' * (self.cores > 1)}"
        gpus = f" and {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        text = f"slurm: {len(self.jobs):,} job{'s' * (len(self.jobs) > 1)}{content}, {cores}{gpus} each"
        if self.seconds is not None and self.core_seconds is not None:
            text += f"; at most {format_duration(self.seconds)} a job"
            text += f", {self.core_seconds / 3600:,.1f} core hours in all"
        return [text]

    @property
    def notes(self) -> list[str]:
        """Warnings about settings that are valid but probably unintended, such as a time limit shorter than a job."""
        limit, first = self.settings.seconds, self.jobs[0][0][0].run
        assert first is not None
        warnings = slurm.notes(self.settings, first.config, sum(len(pack) for job in self.jobs for pack in job))
        if limit is not None and self.seconds is not None and limit - self.settings.grace < self.seconds:
            stops = math.ceil(self.seconds / max(1.0, limit - self.settings.grace)) - 1
            warnings.append(
                f"hydra.launcher.time={self.settings.time}: the longest job takes about "
                f"{format_duration(self.seconds)}, so it is stopped and goes on {stops} time{'s' * (stops > 1)}"
            )
        return warnings


def estimate(expansion: Expansion, rows: Sequence[PlannedRun], planned: PlannedPacks | None = None) -> Estimate | None:
    """Return the jobs for the unfinished runs; None if there are no such runs, or if they do not go to Slurm."""
    left = [row for row in rows if row.run is not None and not row.state.is_over]
    if not left or not expansion.multirun or expansion.launcher.get("name") != "slurm":
        return None
    settings = slurm.parse_settings(expansion.launcher)
    planned = planned or plan_packs(expansion, rows)
    packs: list[Sequence[PlannedRun]] = [*planned.packs] if planned is not None else [(row,) for row in left]
    jobs = [packs[first : first + settings.runs_per_job] for first in range(0, len(packs), settings.runs_per_job)]
    config = left[0].run.config if left[0].run is not None else None
    assert config is not None
    cores = settings.cpus_of_a_job(config.threads)
    times = [_job_seconds(job, settings.at_once) for job in jobs]
    known_seconds = [seconds for seconds in times if seconds is not None]
    is_known = len(known_seconds) == len(times)
    run_bytes = max(memory_bytes(row.run.config, row.run.architecture) for row in left if row.run is not None)
    gpus = settings.gpus_of_a_job(config.device)
    return Estimate(
        settings,
        jobs,
        cores,
        gpus,
        max(known_seconds) if is_known else None,
        sum(known_seconds) * (cores or 1) if is_known else None,
        settings.at_once * (MEMORY_OF_A_RUN + (0 if gpus else run_bytes)),
    )


def resolve_auto(expansion: Expansion) -> Expansion:
    """Return the expansion with the launcher's ``time`` and ``mem`` estimated where they are ``auto``.

    Raises ``UserError`` if ``time`` is ``auto`` and the time of a run is unknown.
    """
    automatic = [name for name in ("time", "mem") if expansion.launcher.get(name) == "auto"]
    if expansion.launcher.get("name") != "slurm" or not automatic:
        return expansion
    estimated = estimate(expansion, plan(expansion))
    if estimated is None:
        return expansion
    values = dict(expansion.launcher)
    if "mem" in automatic:
        values["mem"] = f"{math.ceil(estimated.memory / 2**20)}M"
    if "time" in automatic:
        if estimated.seconds is None:
            raise UserError("hydra.launcher.time=auto: nobody knows how long these runs take; plan --measure does")
        values["time"] = math.ceil((TIME_FACTOR * estimated.seconds + START_SECONDS + estimated.settings.grace) / 60)
    return replace(expansion, launcher=values)


def batch_scripts(expansion: Expansion) -> list[str]:
    """Return the scripts that ``sbatch`` would get for the unfinished runs, without writing or submitting anything.

    Raises ``UserError`` for another launcher than Slurm.
    """
    if expansion.launcher.get("name") != "slurm":
        raise UserError("--dry-run: prints the script of hydra/launcher=slurm; plan says what others would do")
    estimated = estimate(expansion, plan(expansion))
    if estimated is None:
        return []
    first = estimated.jobs[0][0][0].run
    assert first is not None
    return slurm.Slurm(estimated.settings, expansion.folder).batch_scripts(first.config, len(estimated.jobs))


def _job_seconds(job: Sequence[Sequence[PlannedRun]], at_once: int) -> float | None:
    """Estimate the seconds that a job takes; None if the time of one of its runs is unknown."""
    pack_seconds = []
    for pack in job:
        remaining = [row.wall_seconds_left for row in pack]
        if any(seconds is None for seconds in remaining):
            return None
        pack_seconds.append(sum(seconds for seconds in remaining if seconds is not None))
    return parallel_seconds(pack_seconds, min(at_once, len(pack_seconds)))
