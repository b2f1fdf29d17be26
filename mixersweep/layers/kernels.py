"""Kernels of our own for a CPU with AVX2 or AVX-512: C files beside this one, which the machine's compiler makes ready.

That takes half a second, once for a file. Whoever uses one has torch's own operations for where there is none.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixersweep.errors import UserError
from mixersweep.paths import cache_dir

LANES = {"AVX512": 16, "AVX2": 8}
"""The floats in a vector of each instruction set that kernels are made for."""

FLAGS = {"AVX512": ("-mavx512f", "-mavx2", "-mfma"), "AVX2": ("-mavx2", "-mfma")}
GRAIN = 2**15
"""The fewest numbers that are worth a thread: torch's GRAIN_SIZE, for a second one has to be woken and waited for."""

MADE = ("-std=gnu11", "-O3", "-fopenmp", "-shared", "-fPIC")


def library(name: str, **arguments: Sequence[Any]) -> ctypes.CDLL | str:
    """The file ``name.c``, made and loaded, or why there is none; the C types of what each function of it takes."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in LANES:
        return f"they need AVX2 or AVX-512, and this CPU has {capability}"
    try:
        loaded = ctypes.CDLL(str(_made(name, _compiler(), capability)))  # the OpenMP that it asks for is torch's
    except (OSError, UserError) as error:  # the latter: there is no home directory to keep them in
        return str(error)
    for name_of, types in arguments.items():
        function = getattr(loaded, name_of)  # which ctypes keeps, unlike an item
        function.argtypes, function.restype = types, None
    return loaded


def lanes() -> int:
    """The floats in a vector of this machine, 0 where there are no kernels."""
    return LANES.get(torch.backends.cpu.get_cpu_capability(), 0)


def threads_for(numbers: int) -> int:
    """Threads for a kernel that reads so many numbers: one for few, as in torch's own operations."""
    return min(torch.get_num_threads(), max(1, numbers // GRAIN))


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor lies in memory."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def _compiler() -> list[str]:
    """The command of a C compiler: the variable CC's, or the first there is."""
    for command in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise OSError("they need a C compiler: cc, gcc, clang, or the one that CC names")


def _made(name: str, compiler: list[str], capability: str) -> Path:
    """The compiled library, of which there is one for each source and way to make it, between runs."""
    source = Path(__file__).with_name(f"{name}.c")
    command = [*compiler, *MADE, *FLAGS[capability], str(source)]
    key = hashlib.sha256("\0".join([*command[:-1], source.read_text(encoding="utf-8")]).encode()).hexdigest()[:16]
    library = cache_dir("kernels") / f"{name}-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # many jobs may do this at once
        new = Path(folder) / library.name
        try:
            done = subprocess.run([*command, "-o", str(new)], capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            raise OSError(f"{shlex.join(compiler)} took longer than two minutes") from None
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise OSError(f"{shlex.join(compiler)} cannot make them: {last}")
        new.replace(library)
    return library
