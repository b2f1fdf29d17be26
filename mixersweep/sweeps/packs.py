"""Packs of a sweep: which of its runs one process trains as one program, and how large the packs are.

Runs that share a program (``training.packing``) are packed where they train on a GPU, as many as its memory holds by
arithmetic (``memory``); beyond some dozens a larger pack gains nothing. Where there are several places for packs, each
gets some. The longest begin first.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixersweep.config.kinds import Auto, Count
from mixersweep.runs import Run, RunDirectory
from mixersweep.sweeps.memory import memory_bytes
from mixersweep.training.packing import is_packed, program

Pack = tuple[Path, ...]
"""Run directories that one process trains."""

MOST = 64
"""Runs in a pack that nobody asked for: the gain of a larger one is small, and the loss of a process large."""

SHARE = 0.7
"""Of a GPU's memory that a pack may need by arithmetic, which leaves out a library's work space and the images."""

UNKNOWN_MEMORY = 16e9
"""Bytes that a GPU is taken to have where nobody says: few have less."""


@dataclass(frozen=True)
class _Planned:
    """A run to be packed."""

    path: Path
    run: Run

    @property
    def work(self) -> float:
        """Multiply-adds of the training, about."""
        config = self.run.config
        return float(self.run.architecture.flops_per_image * config.data.train_images * config.epochs)


def packs(jobs: Sequence[Path], pack: Count | Auto, *, on_gpu: bool, places: int = 1) -> list[Pack]:
    """The runs in packs, those with the most work first; each by itself where ``pack`` is 1 or nothing is packed.

    ``places``: the packs that are trained at once. A directory that cannot be read is a pack of its own: its training
    says what is wrong.
    """
    if pack == 1 or not jobs or not (on_gpu or pack != "auto" or _asks_for_packs(jobs[0])):
        return [(job,) for job in jobs]
    alone: list[Pack] = []
    programs: dict[str, list[_Planned]] = {}
    for job in jobs:
        try:
            planned = _Planned(job, RunDirectory.open(job).run)
        except Exception:
            alone.append((job,))
            continue
        packed = is_packed(planned.run.config, "cuda" if on_gpu else "cpu")
        programs.setdefault(program(planned.run) if packed else str(job), []).append(planned)
    most = {key: pack if pack != "auto" else _fitting(runs[0].run) for key, runs in programs.items()}
    parts = {key: -(-len(runs) // most[key]) for key, runs in programs.items()}
    while sum(parts.values()) < places:  # the largest packs are shared out first
        largest = max(programs, key=lambda key: len(programs[key]) / parts[key])
        if parts[largest] >= len(programs[largest]):
            break
        parts[largest] += 1
    made = [part for key, runs in programs.items() for part in _shared(runs, parts[key])]
    made.sort(key=lambda part: -sum(planned.work for planned in part))
    return [*(tuple(planned.path for planned in part) for part in made), *alone]


def summary(made: Sequence[Pack]) -> str:
    """``24 runs in 3 packs``, or ``24 runs``."""
    runs = sum(map(len, made))
    return f"{runs} runs" if runs == len(made) else f"{runs} runs in {len(made)} packs"


def _asks_for_packs(job: Path) -> bool:
    try:
        return RunDirectory.open(job).run.config.engine == "packed"
    except Exception:
        return False


def _fitting(run: Run) -> int:
    """The runs of a program that a GPU of this machine holds by arithmetic, at most ``MOST``."""
    return max(1, min(MOST, int(SHARE * _gpu_memory() / memory_bytes(run.config, run.architecture))))


def _shared(runs: Sequence[_Planned], parts: int) -> list[Sequence[_Planned]]:
    """The runs in so many parts, whose sizes differ by one at most."""
    size, more = divmod(len(runs), parts)
    ends = [size * (i + 1) + min(i + 1, more) for i in range(parts)]
    return [runs[end - size - (i < more) : end] for i, end in enumerate(ends)]


def _gpu_memory() -> float:
    """Bytes of the smallest GPU here, as its driver says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return UNKNOWN_MEMORY
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(float(line) for line in listed.splitlines()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN_MEMORY
