"""The environment of a run (device, threads, kernels, versions), as far as it can change the last digits of numbers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mixersweep import processor
from mixersweep.config import Config
from mixersweep.errors import UserError
from mixersweep.layers import blocks, nonzeros, product
from mixersweep.paths import cache_dir


def choose_device(name: str) -> torch.device:
    """The torch device of a setting: ``auto`` is a GPU if there is one. Raises ``UserError`` for a missing device."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if "MIXERSWEEP_GPU" in os.environ:  # a launcher's
            raise UserError(
                f"device=auto: the launcher was asked for GPUs (hydra.launcher.gpus), and torch {torch.__version__} "
                f"finds none (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}); device=cpu asks for none"
            )
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: no such device; there are auto, cpu, cuda, cuda:1, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: runs are trained on cpu or cuda; device=auto takes what is there")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device={name}: torch sees {count} GPUs here; device=auto takes what is there")
    return device


def choose_threads(asked: int | str) -> int:
    """The number of torch's CPU threads: ``auto`` is the cores of this process, divided among torchrun's processes."""
    if isinstance(asked, int):
        return asked
    processes = processor.torchrun_number("LOCAL_WORLD_SIZE", 1)
    return max(1, len(processor.cores()) // processes)


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed tensors for the next ones.

    By default glibc returns blocks of 32 MB and more to the system at once, which then clears their pages anew at every
    step: at width 65,536 and batch 128 that is most of the time of an elementwise operation. Smaller blocks at the top
    of the heap are returned too. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(_M_MMAP_MAX, 0)
        glibc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def set_up_torch(config: Config, device: torch.device, report: Callable[[str], None]) -> None:
    """Set torch's cache of compiled networks and, on a GPU with ``deterministic``, its deterministic algorithms.

    The cache is separate for each kind of CPU. CPU algorithms are always deterministic. ``report`` is told of a
    precision that is slow on this CPU and of GPU operations without a deterministic implementation.
    """
    if device.type == "cpu" and (reason := processor.slow_precision_warning(config.precision)):
        report(f"note: {reason}")
    if config.compile:
        # What AVX-512 has compiled, torch loads where there is AVX2 alone, and all is NaN: machines may share a home.
        os.environ.setdefault(
            "TORCHINDUCTOR_CACHE_DIR", str(_compile_cache() / torch.backends.cpu.get_cpu_capability().lower())
        )
    if not config.deterministic or device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # else each new tensor would first be filled with NaNs
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    shown, refused = warnings.showwarning, set[str]()

    def show_once(message: Warning | str, *rest: Any, **named: Any) -> None:
        text = str(message)
        if "deterministic" not in text:
            shown(message, *rest, **named)
        elif (operation := text.split(" ")[0]) not in refused:
            refused.add(operation)
            report(f"deterministic=true: {operation} has no deterministic way on a GPU")

    warnings.showwarning = show_once


def _compile_cache() -> Path:
    """The folder of compiled networks: in the cache, or a temporary one if the cache has no usable path.

    A path with spaces is not usable: torch does not quote it in the compiler's command line.
    """
    try:
        kept = cache_dir("compiled")
    except UserError:
        kept = Path()
    is_fine = kept.is_absolute() and not re.search(r"\s", str(kept))
    return kept if is_fine else Path(tempfile.gettempdir()) / f"mixersweep-compiled-{os.getuid()}"


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """A context that restores the global settings of torch, and our own, when it exits.

    Only ``keep_freed_memory`` cannot be undone.
    """
    threads, shown, routine = torch.get_num_threads(), warnings.showwarning, product.routine()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        warnings.showwarning = shown
        product.use(routine)


def describe_environment(
    device: torch.device,
    threads: int,
    storage: str,
    config: Config | None = None,
    world_size: int = 1,
    engine: str = "eager",
) -> dict[str, Any]:
    """The environment of a run, as recorded: runs of equal fingerprint and environment are bit-identical."""
    return {
        "device_kind": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "engine": engine,
        "products": product.routine() if _uses_own_products(device.type, engine) else None,
        "compile": bool(config and config.compile),
        "storage": storage,
        "sparse_kernels": nonzeros.implementation(device) if storage != "dense" else None,
        "block_kernels": blocks.implementation(device) if config and config.model.structure == "product" else None,
        "accumulation": config.accumulation if config else 1,
        "deterministic": bool(config and config.deterministic),
        "world_size": world_size,
        "torch": str(torch.__version__),
    }


def as_recorded_today(environment: dict[str, Any]) -> dict[str, Any]:
    """Complete a recorded environment with the keys that older versions did not record; an empty one stays empty."""
    if not environment:
        return {}
    whole = {"engine": "eager", "block_kernels": None, **environment}
    if "products" not in whole:  # oneDNN's, wherever it was to be had
        before: product.Routine = "onednn" if product.is_available() else "torch"
        on_cpu = _uses_own_products("cpu" if whole["device_kind"] == "cpu" else "cuda", whole["engine"])
        whole["products"] = before if on_cpu else None
    return whole


def _uses_own_products(device_type: str, engine: str) -> bool:
    """Whether ``layers/product.py`` computes dense products: only in the eager engine on a CPU."""
    return device_type == "cpu" and engine == "eager"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that determine numbers."""
    packages = ("mixersweep", "torch", "torchvision", "numpy", "hydra-core", "omegaconf")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def set_threads(config: Config, kept: int | None) -> int:
    """Set and return the number of torch's threads: ``kept``, with which the run began, or else the setting."""
    threads = kept or choose_threads(config.threads)
    torch.set_num_threads(threads)
    return threads
