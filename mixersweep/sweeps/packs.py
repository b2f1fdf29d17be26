"""Group the runs of a sweep into packs, each of which one process trains as a single program.

Runs that share a program (``training.packing``) are packed if they train on a GPU, as many as its memory holds,
judged by the measured peak of an earlier pack of such runs, or by an estimate (``memory``) before there is one. Beyond
a few dozen runs a larger pack gains nothing. If several packs can train at once, the runs are divided among as many.
The packs with the most work begin first.
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
from mixersweep.sweeps.times import completed_runs_like
from mixersweep.training.packing import is_packed, program, why_alone

T = TypeVar("T", bound=Hashable)

Pack = tuple[Path, ...]
"""Run directories that one process trains."""

MOST_RUNS = 64
"""The most runs in a pack with ``pack=auto``: a larger one gains little, and its process loses more if it dies."""

MEMORY_FRACTION = 0.7
"""The fraction of a GPU's memory that a pack may fill. The estimate leaves out work space and images, and in any case a
process needs memory beside its tensors."""

UNKNOWN_MEMORY = 16e9
"""Bytes of memory assumed for a GPU if the driver does not tell; few have less."""


def pack_jobs(
    jobs: Sequence[Path], pack: Count | Auto, *, on_gpu: bool, at_once: int = 1, packs_per_gpu: int = 1
) -> list[Pack]:
    """Group run directories into packs with ``form_packs``; without packing, each is a pack of one, in the given order.

    A directory that cannot be read is a pack of one: training it reports what is wrong.
    """
    if pack == 1 or (pack == "auto" and not on_gpu and not any(map(_has_packed_engine, jobs))):
        return [(job,) for job in jobs]
    runs: dict[Path, Run] = {}
    for job in jobs:
        with contextlib.suppress(Exception):
            runs[job] = RunDirectory.open(job).run
    if not may_pack(runs.values(), pack, on_gpu=on_gpu):
        return [(job,) for job in jobs]
    packs = form_packs(runs, pack, on_gpu=on_gpu, at_once=at_once, packs_per_gpu=packs_per_gpu)
    return [*packs, *((job,) for job in jobs if job not in runs)]


def may_pack(runs: Iterable[Run], pack: Count | Auto, *, on_gpu: bool) -> bool:
    """Whether a launcher may pack these runs: on GPUs, or where ``pack`` or a run's ``engine=packed`` asks for it."""
    return pack != 1 and (on_gpu or pack != "auto" or any(run.config.engine == "packed" for run in runs))


def form_packs(
    runs: Mapping[T, Run], pack: Count | Auto, *, on_gpu: bool, at_once: int = 1, packs_per_gpu: int = 1
) -> list[tuple[T, ...]]:
    """Group runs, each given with a key, into packs of at most ``pack``; the packs with the most work come first.

    ``at_once`` is the number of packs that train at once, and so the least number of packs if there are enough runs.
    ``packs_per_gpu`` is the number of packs that share a GPU and its memory.
    """
    memory = _gpu_memory() / packs_per_gpu if pack == "auto" else 0.0
    programs: dict[object, list[T]] = {}
    for key, run in runs.items():
        packed = reason_single(run.config, on_gpu=on_gpu) is None
        programs.setdefault(program(run) if packed else ("alone", key), []).append(key)
    # Only for programs with several runs, since finding out how many fit reads the directory of runs.
    with_several = {name: keys for name, keys in programs.items() if len(keys) > 1}
    most_runs = {
        name: pack if pack != "auto" else _runs_that_fit(runs[keys[0]], memory) for name, keys in with_several.items()
    }
    part_counts = {name: -(-len(keys) // most_runs.get(name, 1)) for name, keys in programs.items()}
    while sum(part_counts.values()) < at_once:  # split the program with the largest packs
        splittable = [name for name, keys in programs.items() if part_counts[name] < len(keys)]
        if not splittable:
            break
        part_counts[max(splittable, key=lambda name: len(programs[name]) / part_counts[name])] += 1
    packs = [part for name, keys in programs.items() for part in _split_evenly(keys, part_counts[name])]
    return sorted(packs, key=lambda part: -sum(_forward_work(runs[key]) for key in part))


def reason_single(config: Config, *, on_gpu: bool) -> str | None:
    """Return the reason why a run has to train by itself, or None if it can share a pack with runs of its program."""
    device = "cuda" if on_gpu and config.device != "cpu" else "cpu"
    if (reason := why_alone(config)) is not None or is_packed(config, device):
        return reason
    return f"engine={config.engine} trains by itself" + ("" if config.engine == "eager" else " on a CPU")


def count_in_words(packs: Sequence[Pack]) -> str:
    """Describe packs in words: ``24 runs in 3 packs``, or ``24 runs`` if each is by itself."""
    runs = sum(map(len, packs))
    return f"{runs} runs" if runs == len(packs) else f"{runs} runs in {len(packs)} packs"


def _has_packed_engine(job: Path) -> bool:
    """Whether a run's frozen settings say ``engine=packed``; validating them would take ten times as long."""
    stored = read_json(job / "planned.json")
    return stored is None or stored["config"].get("engine") == "packed"


def _forward_work(run: Run) -> float:
    """Estimate the multiply-adds of all forward passes in training, to order packs by."""
    return float(run.architecture.flops_per_image * run.config.data.train_images * run.config.epochs)


def _runs_that_fit(run: Run, memory: float) -> int:
    """Return the number of runs like this one that fit into ``memory`` bytes, at most ``MOST_RUNS``."""
    need = _measured_bytes(run) or memory_bytes(run.config, run.architecture)
    return max(1, min(MOST_RUNS, int(MEMORY_FRACTION * memory / need)))


def _measured_bytes(run: Run) -> float | None:
    """Return the measured peak bytes per run in the largest completed GPU pack of this shape; None without one."""
    bytes_of_size: dict[int, float] = {}
    for listed in completed_runs_like(run):
        result = listed.result or {}
        size, peak = result.get("pack_size") or 1, result.get("peak_memory_bytes")
        if size > 1 and peak and (result.get("environment") or {}).get("device_kind", "cpu") != "cpu":
            bytes_of_size[size] = max(bytes_of_size.get(size, 0.0), peak / size)
    return bytes_of_size[max(bytes_of_size)] if bytes_of_size else None


def _split_evenly(keys: Sequence[T], parts: int) -> list[tuple[T, ...]]:
    """Split the keys into ``parts`` consecutive parts whose sizes differ by at most one."""
    size, larger = divmod(len(keys), parts)
    stops = [size * (i + 1) + min(i + 1, larger) for i in range(parts)]
    return [tuple(keys[end - size - (i < larger) : end]) for i, end in enumerate(stops)]


def _gpu_memory() -> float:
    """Return the bytes of memory of this machine's smallest GPU, ``UNKNOWN_MEMORY`` if the driver does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return UNKNOWN_MEMORY
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(float(line) for line in listed.splitlines()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN_MEMORY
