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
from mixersweep.sweeps.plan import Packs, Planned, packs, plan, together
from mixersweep.sweeps.text import duration

MARGIN, TO_BEGIN = 1.5, 300.0
"""With ``time=auto``: the factor on the estimated time of a job, and the seconds added for its start."""


@dataclass(frozen=True)
class Asked:
    """The jobs of a sweep, and the resources that each requests.

    ``seconds`` is the estimated time of the longest job and ``core_seconds`` that of all jobs times their cores, both
    None where unknown; ``memory`` is in bytes a job.
    """

    settings: slurm.SlurmSettings
    jobs: list[list[Sequence[Planned]]]
    cores: int | None
    gpus: int
    seconds: float | None
    core_seconds: float | None
    memory: float

    @property
    def lines(self) -> list[str]:
        """The number of jobs, their cores, GPUs and hours, in words."""
        most = max(map(len, self.jobs))
        what = "pack" if any(len(pack) > 1 for job in self.jobs for pack in job) else "run"
        share = f" of {most} {what}s, {min(most, self.settings.at_once)} at once" if most > 1 else ""
        cores = "the cluster's number of cores" if self.cores is None else f"{self.cores} core{'s' * (self.cores > 1)}"
        gpus = f" and {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        text = f"slurm: {len(self.jobs):,} job{'s' * (len(self.jobs) > 1)}{share}, {cores}{gpus} each"
        if self.seconds is not None and self.core_seconds is not None:
            text += f"; at most {duration(self.seconds)} a job, {self.core_seconds / 3600:,.1f} core hours in all"
        return [text]

    @property
    def notes(self) -> list[str]:
        """Warnings about settings that are valid but probably unintended, such as a time limit shorter than a job."""
        limit, first = self.settings.seconds, self.jobs[0][0][0].run
        assert first is not None
        found = slurm.notes(self.settings, first.config, sum(len(pack) for job in self.jobs for pack in job))
        if limit is not None and self.seconds is not None and limit - self.settings.grace < self.seconds:
            stops = math.ceil(self.seconds / max(1.0, limit - self.settings.grace)) - 1
            found.append(
                f"hydra.launcher.time={self.settings.time}: the longest job takes about {duration(self.seconds)}, so "
                f"it is stopped and goes on {stops} time{'s' * (stops > 1)}"
            )
        return found


def asked(expansion: Expansion, rows: Sequence[Planned], packed: Packs | None = None) -> Asked | None:
    """Return the jobs for the unfinished runs; None if there are no such runs, or if they do not go to Slurm."""
    left = [row for row in rows if row.run is not None and not row.state.is_over]
    if not left or not expansion.multirun or expansion.launcher.get("name") != "slurm":
        return None
    settings = slurm.checked(expansion.launcher)
    packed = packed or packs(expansion, rows)
    made: list[Sequence[Planned]] = [*packed.made] if packed is not None else [(row,) for row in left]
    jobs = [made[first : first + settings.runs_per_job] for first in range(0, len(made), settings.runs_per_job)]
    config = left[0].run.config if left[0].run is not None else None
    assert config is not None
    cores = settings.cpus_of_a_job(config.threads)
    times = [_seconds(job, settings.at_once) for job in jobs]
    known = [seconds for seconds in times if seconds is not None]
    is_known = len(known) == len(times)
    memory = max(memory_bytes(row.run.config, row.run.architecture) for row in left if row.run is not None)
    gpus = settings.gpus_of_a_job(config.device)
    return Asked(
        settings,
        jobs,
        cores,
        gpus,
        max(known) if is_known else None,
        sum(known) * (cores or 1) if is_known else None,
        settings.at_once * (MEMORY_OF_A_RUN + (0 if gpus else memory)),
    )


def resolved(expansion: Expansion) -> Expansion:
    """Return the expansion with the launcher's ``time`` and ``mem`` estimated where they are ``auto``.

    Raises ``UserError`` if ``time`` is ``auto`` and the time of a run is unknown.
    """
    wanted = [name for name in ("time", "mem") if expansion.launcher.get(name) == "auto"]
    if expansion.launcher.get("name") != "slurm" or not wanted:
        return expansion
    found = asked(expansion, plan(expansion))
    if found is None:
        return expansion
    values = dict(expansion.launcher)
    if "mem" in wanted:
        values["mem"] = f"{math.ceil(found.memory / 2**20)}M"
    if "time" in wanted:
        if found.seconds is None:
            raise UserError("hydra.launcher.time=auto: nobody knows how long these runs take; plan --measure does")
        values["time"] = math.ceil((MARGIN * found.seconds + TO_BEGIN + found.settings.grace) / 60)
    return replace(expansion, launcher=values)


def scripts(expansion: Expansion) -> list[str]:
    """Return the scripts that ``sbatch`` would get for the unfinished runs, without writing or submitting anything.

    Raises ``UserError`` for another launcher than Slurm.
    """
    if expansion.launcher.get("name") != "slurm":
        raise UserError("--dry-run: prints the script of hydra/launcher=slurm; plan says what others would do")
    found = asked(expansion, plan(expansion))
    if found is None:
        return []
    first = found.jobs[0][0][0].run
    assert first is not None
    return slurm.Slurm(found.settings, expansion.folder).scripts(first.config, len(found.jobs))


def _seconds(job: Sequence[Sequence[Planned]], at_once: int) -> float | None:
    """Estimate the seconds that a job takes; None if the time of one of its runs is unknown."""
    of_each = []
    for pack in job:
        left = [row.wall_seconds_left for row in pack]
        if any(seconds is None for seconds in left):
            return None
        of_each.append(sum(seconds for seconds in left if seconds is not None))
    return together(of_each, min(at_once, len(of_each)))
