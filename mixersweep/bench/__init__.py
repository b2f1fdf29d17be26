"""Measure speed as a ratio to a named alternative on the same machine: ``mixersweep bench SUITE``.

The suites are layers, step, loader, train and pack; each yields the cases (``Case``) that ``measure`` compares.
"""

from collections.abc import Iterator

from mixersweep.bench.harness import Case, measure, verdict
from mixersweep.bench.layers import layer_cases
from mixersweep.bench.loader import loader_cases
from mixersweep.bench.pack import pack_cases
from mixersweep.bench.step import step_cases
from mixersweep.bench.structures import structure_cases
from mixersweep.bench.train import train_cases


def _layers_and_structures(everything: bool) -> Iterator[Case]:
    yield from layer_cases(everything)
    yield from structure_cases()


SUITES = {
    "layers": _layers_and_structures,
    "step": step_cases,
    "loader": loader_cases,
    "train": train_cases,
    "pack": pack_cases,
}

__all__ = [
    "SUITES",
    "Case",
    "layer_cases",
    "loader_cases",
    "measure",
    "pack_cases",
    "step_cases",
    "structure_cases",
    "train_cases",
    "verdict",
]
