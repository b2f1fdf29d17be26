"""Run directories: what an experiment is, who holds it, what it left."""

from mixersweep.runs.directory import Origin, Run, RunDirectory, solve
from mixersweep.runs.experiment import NUMBERS_VERSION, fingerprint
from mixersweep.runs.record import VOLATILE, completed, planned, same_experiment_same_numbers
from mixersweep.runs.status import FINAL_STATES, Hold, Status, hold, read_status, set_status

__all__ = [
    "FINAL_STATES",
    "NUMBERS_VERSION",
    "VOLATILE",
    "Hold",
    "Origin",
    "Run",
    "RunDirectory",
    "Status",
    "completed",
    "fingerprint",
    "hold",
    "planned",
    "read_status",
    "same_experiment_same_numbers",
    "set_status",
    "solve",
]
