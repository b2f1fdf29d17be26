"""Show the progress of training on stderr: a bar on a terminal, otherwise one line for each epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """A progress bar over steps, with the metrics of the last epoch; it never waits for the device."""

    def __init__(
        self, epochs: int, steps_per_epoch: int, first_epoch: int, first_step: int = 0, *, shown: bool = True
    ) -> None:
        self._epochs = epochs
        self._began, self._done = time.monotonic(), 0
        self._left = (epochs - first_epoch + 1) * steps_per_epoch - first_step
        console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if console.is_terminal and shown:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            completed = (first_epoch - 1) * steps_per_epoch + first_step
            self._task = self._bar.add_task("first epoch", total=epochs * steps_per_epoch, completed=completed)
            self._bar.start()

    def step(self) -> None:
        """Count one trained step."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)

    def epoch(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the metrics of an epoch, given the rows of its runs."""
        if not rows:
            return
        text = f"epoch {rows[0]['epoch']}/{self._epochs}"
        text += f"  {len(rows)} runs" if len(rows) > 1 else ""
        text += f"  loss {_range(rows, 'train_loss')}"
        if rows[0]["validation_accuracy"] is not None:
            text += f"  validation {_range(rows, 'validation_accuracy')}"
        speed = sum(row["images_per_second"] for row in rows)
        text += f"  test {_range(rows, 'test_accuracy')}  {speed:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            left = (time.monotonic() - self._began) / max(1, self._done) * (self._left - self._done)
            print(f"{text}  {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop the bar and release the terminal."""
        if self._bar is not None:
            self._bar.stop()


def _range(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Format a metric of one run, or the range from lowest to highest over several."""
    values = [row[name] for row in rows]
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if len(values) == 1 else f"{low} to {high}"
