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

AT_ONCE = 8
EVERY = 5.0
"""Seconds between two lines that report progress."""

LINES = 20
"""The most lines to print about single runs; more are summarised."""


class Progress:
    """Reports progress every few seconds, such as ``frozen: 1,200 of 5,040 runs``."""

    def __init__(self, word: str, total: int, report: Callable[[str], None]) -> None:
        self._word, self._total, self._report = word, total, report
        self._done, self._told = 0, time.monotonic()

    def step(self) -> None:
        """Count one more run as done."""
        self._done += 1
        if self._done < self._total and time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            self._report(f"{self._word}: {self._done:,} of {self._total:,} runs")


def each(act: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply ``act`` to the items in parallel and yield its results in order; its first error stops the rest."""
    rest = iter(items)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        going = [pool.submit(act, item) for item in islice(rest, 4 * AT_ONCE)]
        try:
            while going:
                yield going.pop(0).result()
                going += [pool.submit(act, item) for item in islice(rest, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def summed_up(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the text of each (state, model and width, text), or if there are many, the number of each kind."""
    if len(lines) <= LINES:
        return [text for _, _, text in lines]
    counts = Counter((state, kind) for state, kind, _ in lines)
    shown = counts.most_common(LINES)
    wide = max(len(f"{count:,}") for _, count in shown)
    told = [f"{state:11}  {count:{wide},}  {kind}" for (state, kind), count in sorted(shown)]
    left = len(lines) - sum(count for _, count in shown)
    return [*told, f"and {left:,} others; mixersweep status shows each"] if left else told
