"""Compile and load kernels of our own for a CPU with AVX2 or AVX-512: the C files in this directory.

The machine's C compiler takes half a second for a file, once. Every caller falls back on torch's operations.
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
"""The number of floats in a vector, for each instruction set with kernels."""

FLAGS = {"AVX512": ("-mavx512f", "-mavx2", "-mfma"), "AVX2": ("-mavx2", "-mfma")}
GRAIN = 2**15
"""The fewest numbers that are worth another thread, which must be woken and waited for: torch's GRAIN_SIZE."""

MADE = ("-std=gnu11", "-O3", "-fopenmp", "-shared", "-fPIC")


def library(name: str, **arguments: Sequence[Any]) -> ctypes.CDLL | str:
    """Compile and load ``name.c``, or return the reason why that is impossible.

    ``arguments`` are the C types of the arguments of each of its functions.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in LANES:
        return f"they need AVX2 or AVX-512, and this CPU has {capability}"
    try:
        loaded = ctypes.CDLL(str(_compiled(name, _compiler(), capability)))  # uses the OpenMP that torch has loaded
    except (OSError, UserError) as error:  # UserError: there is no home directory to keep them in
        return str(error)
    for name_of, types in arguments.items():
        function = getattr(loaded, name_of)  # an attribute is cached by ctypes, unlike an item
        function.argtypes, function.restype = types, None
    return loaded


def lanes() -> int:
    """Return the number of floats in a vector of this CPU, 0 where there are no kernels for it."""
    return LANES.get(torch.backends.cpu.get_cpu_capability(), 0)


def threads_for(numbers: int) -> int:
    """Return the number of threads for a kernel that reads so many numbers, as torch's own operations choose it."""
    return min(torch.get_num_threads(), max(1, numbers // GRAIN))


def address(tensor: Tensor | None) -> int | None:
    """Return the memory address of a contiguous tensor, None for None."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def _compiler() -> list[str]:
    """Return the command of a C compiler: that of the variable CC, or the first that is installed.

    Raises ``OSError`` where there is none.
    """
    for command in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise OSError("they need a C compiler: cc, gcc, clang, or the one that CC names")


def _compiled(name: str, compiler: list[str], capability: str) -> Path:
    """Return the path of the compiled library; a cached one serves as long as source and command stay the same."""
    source = Path(__file__).with_name(f"{name}.c")
    command = [*compiler, *MADE, *FLAGS[capability], str(source)]
    key = hashlib.sha256("\0".join([*command[:-1], source.read_text(encoding="utf-8")]).encode()).hexdigest()[:16]
    library = cache_dir("kernels") / f"{name}-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # several jobs may compile it at once
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
