"""How kernels in Triton are tested: compiled on a GPU, interpreted on a CPU, which is said when Triton is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.speed import HANGS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def on_its_device(test: Any) -> Any:
    """Such a test runs on a GPU, and where Triton interprets its kernels."""
    return test if INTERPRETED else pytest.mark.gpu(needs_a_gpu(test))


def run_interpreted(file: str) -> int:
    """Run the tests of a file in a process of its own, whose kernels are interpreted; returns how many passed.

    Skips within that process. A test that fails there fails here, with its output.
    """
    if INTERPRETED:
        pytest.skip("this is that process")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    if _version("triton") < (3, 3) and _version("numpy") >= (2, 4):
        pytest.skip("the interpreter of this Triton fails with this numpy")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert ended.returncode == 0, ended.stdout
    passed = re.search(r"(\d+) passed", ended.stdout)
    return int(passed[1]) if passed else 0


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
