"""Process thousands of run directories: several at a time, since each waits for the disk, with reports of progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 8
REPORT_SECONDS = 5.0
"""Seconds between two lines that report progress."""

MOST_LINES = 20
"""The most lines to print about single runs; more are summarised."""


class Progress:
    """Reports progress every few seconds, such as ``frozen: 1,200 of 5,040 runs``."""

    def __init__(self, verb: str, total: int, report: Callable[[str], None]) -> None:
        self._verb, self._total, self._report = verb, total, report
        self._done, self._reported = 0, time.monotonic()

    def step(self) -> None:
        """Count one more run as done."""
        self._done += 1
        if self._done < self._total and time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            self._report(f"{self._verb}: {self._done:,} of {self._total:,} runs")


def map_parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply ``function`` to the items in parallel and yield its results in order; its first error stops the rest."""
    remaining = iter(items)
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(function, item) for item in islice(remaining, 4 * WORKERS)]
        try:
            while futures:
                yield futures.pop(0).result()
                futures += [pool.submit(function, item) for item in islice(remaining, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def summarise(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the text of each (state, model and width, text), or if there are many, the number of each kind."""
    if len(lines) <= MOST_LINES:
        return [text for _, _, text in lines]
    counts = Counter((state, kind) for state, kind, _ in lines)
    shown = counts.most_common(MOST_LINES)
    digits = max(len(f"{count:,}") for _, count in shown)
    texts = [f"{state:11}  {count:{digits},}  {kind}" for (state, kind), count in sorted(shown)]
    left = len(lines) - sum(count for _, count in shown)
    return [*texts, f"and {left:,} others; mixersweep status shows each"] if left else texts
