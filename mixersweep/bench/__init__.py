"""Speed as a ratio to a named alternative, both measured in the same run: ``mixersweep bench layers|step|loader``."""

from mixersweep.bench.harness import Case, measure
from mixersweep.bench.layers import layer_cases
from mixersweep.bench.loader import loader_cases
from mixersweep.bench.step import step_cases

SUITES = {"layers": layer_cases, "step": step_cases, "loader": loader_cases}

__all__ = ["SUITES", "Case", "layer_cases", "loader_cases", "measure", "step_cases"]
