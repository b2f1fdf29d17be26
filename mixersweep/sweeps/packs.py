"""Packs of a sweep: which of its runs one process trains as one program, and how large the packs are.

Runs that share a program (``training.packing``) are packed where they train on a GPU, as many as its memory holds: by
what an earlier pack of such runs took at its peak, or by arithmetic (``memory``) before there is one. Beyond some
dozens a larger pack gains nothing. Where there are several places for packs, each
gets some. The longest begin first.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mixersweep.config import Config
from mixersweep.kinds import Auto, Count
from mixersweep.runs import Run, RunDirectory
from mixersweep.runs.files import read_json
from mixersweep.sweeps.memory import memory_bytes
from mixersweep.sweeps.times import alike
from mixersweep.training.packing import is_packed, program, why_alone

T = TypeVar("T", bound=Hashable)

Pack = tuple[Path, ...]
"""Run directories that one process trains."""

MOST = 64
"""Runs in a pack that nobody asked for: the gain of a larger one is small, and the loss of a process large."""

SHARE = 0.7
"""Of a GPU's memory that a pack may need. Arithmetic leaves out a library's work space and the images, and measured or
not a process needs some that its tensors do not show."""

UNKNOWN_MEMORY = 16e9
"""Bytes that a GPU is taken to have where nobody says: few have less."""


def packs(jobs: Sequence[Path], pack: Count | Auto, *, on_gpu: bool, places: int = 1, sharing: int = 1) -> list[Pack]:
    """The runs of these directories in packs, as ``formed`` makes them; each by itself, in order, where nothing packs.

    A directory that cannot be read is a pack of its own: its training says what is wrong.
    """
    if pack == 1 or (pack == "auto" and not on_gpu and not any(map(_asks_for_packs, jobs))):
        return [(job,) for job in jobs]
    runs: dict[Path, Run] = {}
    for job in jobs:
        with contextlib.suppress(Exception):
            runs[job] = RunDirectory.open(job).run
    if not may_pack(runs.values(), pack, on_gpu=on_gpu):
        return [(job,) for job in jobs]
    made = formed(runs, pack, on_gpu=on_gpu, places=places, sharing=sharing)
    return [*made, *((job,) for job in jobs if job not in runs)]


def may_pack(runs: Iterable[Run], pack: Count | Auto, *, on_gpu: bool) -> bool:
    """Whether a launcher looks for packs among runs: on GPUs, or where somebody asks for them."""
    return pack != 1 and (on_gpu or pack != "auto" or any(run.config.engine == "packed" for run in runs))


def formed(
    runs: Mapping[T, Run], pack: Count | Auto, *, on_gpu: bool, places: int = 1, sharing: int = 1
) -> list[tuple[T, ...]]:
    """Runs, each under a key of its own, in packs of at most ``pack``; the packs with the most work come first.

    ``places``: the packs that are trained at once, each of which gets some where there are enough runs. ``sharing``:
    the packs that share a GPU and its memory.
    """
    memory = _gpu_memory() / sharing if pack == "auto" else 0.0
    programs: dict[object, list[T]] = {}
    for key, run in runs.items():
        packed = why_single(run.config, on_gpu=on_gpu) is None
        programs.setdefault(program(run) if packed else ("alone", key), []).append(key)
    # How many runs fit is asked of programs that have several: it takes a look at the directory of runs.
    several = {name: keys for name, keys in programs.items() if len(keys) > 1}
    most = {name: pack if pack != "auto" else _fitting(runs[keys[0]], memory) for name, keys in several.items()}
    parts = {name: -(-len(keys) // most.get(name, 1)) for name, keys in programs.items()}
    while sum(parts.values()) < places:  # the largest packs are shared out first
        splittable = [name for name, keys in programs.items() if parts[name] < len(keys)]
        if not splittable:
            break
        parts[max(splittable, key=lambda name: len(programs[name]) / parts[name])] += 1
    made = [part for name, keys in programs.items() for part in _shared(keys, parts[name])]
    return sorted(made, key=lambda part: -sum(_work(runs[key]) for key in part))


def why_single(config: Config, *, on_gpu: bool) -> str | None:
    """Why a run is in no pack with any other, be it of its program; None where nothing keeps it from one."""
    device = "cuda" if on_gpu and config.device != "cpu" else "cpu"
    if (reason := why_alone(config)) is not None or is_packed(config, device):
        return reason
    return f"engine={config.engine} trains by itself" + ("" if config.engine == "eager" else " on a CPU")


def summary(made: Sequence[Pack]) -> str:
    """``24 runs in 3 packs``, or ``24 runs``."""
    runs = sum(map(len, made))
    return f"{runs} runs" if runs == len(made) else f"{runs} runs in {len(made)} packs"


def _asks_for_packs(job: Path) -> bool:
    """Whether the frozen settings of a run do, without checking them, which takes ten times as long."""
    stored = read_json(job / "planned.json")
    return stored is None or stored["config"].get("engine") == "packed"


def _work(run: Run) -> float:
    """Multiply-adds of a training, about."""
    return float(run.architecture.flops_per_image * run.config.data.train_images * run.config.epochs)


def _fitting(run: Run, memory: float) -> int:
    """The runs of a program that so many bytes hold, at most ``MOST``."""
    need = _measured(run) or memory_bytes(run.config, run.architecture)
    return max(1, min(MOST, int(SHARE * memory / need)))


def _measured(run: Run) -> float | None:
    """Bytes a run of the largest pack of this shape that has completed on a GPU beside it; None before there is one."""
    found: dict[int, float] = {}
    for listed in alike(run):
        result = listed.result or {}
        size, peak = result.get("pack_size") or 1, result.get("peak_memory_bytes")
        if size > 1 and peak and (result.get("environment") or {}).get("device_kind", "cpu") != "cpu":
            found[size] = max(found.get(size, 0.0), peak / size)
    return found[max(found)] if found else None


def _shared(keys: Sequence[T], parts: int) -> list[tuple[T, ...]]:
    """The keys in so many parts, whose sizes differ by one at most."""
    size, more = divmod(len(keys), parts)
    ends = [size * (i + 1) + min(i + 1, more) for i in range(parts)]
    return [tuple(keys[end - size - (i < more) : end]) for i, end in enumerate(ends)]


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
