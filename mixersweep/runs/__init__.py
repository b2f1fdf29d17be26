"""Run directories: an experiment's identity, its state, its files and its results."""

from mixersweep.runs.directory import Origin, Run, RunDirectory, solve
from mixersweep.runs.experiment import NUMBERS_VERSION, fingerprint
from mixersweep.runs.record import VOLATILE, completed_record, planned_record, same_experiment_same_numbers
from mixersweep.runs.state import State
from mixersweep.runs.status import Hold, Status, hold, read_status, set_status

__all__ = [
    "NUMBERS_VERSION",
    "VOLATILE",
    "Hold",
    "Origin",
    "Run",
    "RunDirectory",
    "State",
    "Status",
    "completed_record",
    "fingerprint",
    "hold",
    "planned_record",
    "read_status",
    "same_experiment_same_numbers",
    "set_status",
    "solve",
]
