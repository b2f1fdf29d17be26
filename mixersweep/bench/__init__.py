"""Speed as a ratio to a named alternative, both measured in one run: ``mixersweep bench layers|step|loader|train``."""

from mixersweep.bench.harness import Case, measure
from mixersweep.bench.layers import layer_cases
from mixersweep.bench.loader import loader_cases
from mixersweep.bench.step import step_cases
from mixersweep.bench.train import train_cases

SUITES = {"layers": layer_cases, "step": step_cases, "loader": loader_cases, "train": train_cases}

__all__ = ["SUITES", "Case", "layer_cases", "loader_cases", "measure", "step_cases", "train_cases"]
