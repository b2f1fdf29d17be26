"""A stop at a chosen moment, without a signal."""

from mixersweep.errors import RunStopped
from mixersweep.training.signals import StopSignals


class StopAfter(StopSignals):
    """A stop at the n-th check, which is at a step of training or evaluation."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        """Raise at the n-th call."""
        self.left -= 1
        if self.left == 0:
            raise RunStopped("preempted", 75)
