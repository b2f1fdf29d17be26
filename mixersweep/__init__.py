"""At a fixed number of connections, does a wider and sparser network generalise better?"""

# What a notebook needs. Each name is imported when it is first used, and torch only with those that build or train.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixersweep.api.networks import build, mixing_block
    from mixersweep.api.planning import Plan, plan, plan_sweep
    from mixersweep.api.results import Findings, compare, read_runs
    from mixersweep.api.training import TrainedRun, sweep, train
    from mixersweep.errors import MixersweepError, RunDiverged, RunFailed, RunStopped, UserError

__version__ = "0.1.0"

__all__ = [
    "Findings",
    "MixersweepError",
    "Plan",
    "RunDiverged",
    "RunFailed",
    "RunStopped",
    "TrainedRun",
    "UserError",
    "build",
    "compare",
    "mixing_block",
    "plan",
    "plan_sweep",
    "read_runs",
    "sweep",
    "train",
]

_MODULES = {
    "mixersweep.api.networks": ("build", "mixing_block"),
    "mixersweep.api.planning": ("Plan", "plan", "plan_sweep"),
    "mixersweep.api.results": ("Findings", "compare", "read_runs"),
    "mixersweep.api.training": ("TrainedRun", "sweep", "train"),
    "mixersweep.errors": ("MixersweepError", "RunDiverged", "RunFailed", "RunStopped", "UserError"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # to which a name that is not imported above is a mistake

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
