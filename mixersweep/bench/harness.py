"""Measure two ways of doing the same work: alternating, warmed up, compared by their medians.

Machines are noisy and each has its own speed, so the result is no absolute time but the ratio of two medians. Subject
and reference alternate in one process. Short ones run once untimed before each timing, so that they find warm caches,
as in a training. On a CPU each peak memory is measured in a fresh process, the only way to tell them apart.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from mixersweep.training.environment import keep_freed_memory
from mixersweep.training.timing import seconds_of

Make = Callable[[torch.device], Callable[[], object]]
"""A function that prepares a task on a device and returns the callable to time."""

REPETITIONS, FEWEST, LONG_SECONDS, SHORT_SECONDS = 10, 3, 3.0, 0.1
MOST, BRIEF_SECONDS = 100, 0.5
"""The most repetitions of a task below ``SHORT_SECONDS``, and the seconds after which they stop: other work on the
machine disturbs short tasks more.
"""

NOTABLE = 0.95
"""The ratio below which code counts as slower than torch's own: a call of ours costs a few microseconds more."""

CONFIDENCE = 0.95
"""The least probability with which ``interval`` contains the median."""


@dataclass(frozen=True)
class Case:
    """One comparison of a subject with a reference.

    ``sizes`` and ``extra`` are copied into its record. ``scale`` multiplies the reference's seconds, so that they count
    the same work. With ``once`` both are whole commands, timed once. ``torchs_own`` marks a reference that is torch's
    own way to the same result, which ours should not be slower than (``verdict``).
    """

    benchmark: str
    sizes: dict[str, Any]
    subject: Make
    reference: Make
    mode: str = "eager"
    memory: bool = False
    scale: float = 1.0
    once: bool = False
    torchs_own: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Run one comparison and return its flat record, times in seconds and memory in bytes.

    ``ratio`` is the reference's time over the subject's, above 1 where the subject is faster.
    """
    keep_freed_memory()
    both = [case.subject(device), case.reference(device)]
    times = [[seconds_of(run, device)] for run in both] if case.once else _in_turns(both, device)
    subject, reference = (statistics.median(mine) for mine in times)
    low, high = interval([theirs * case.scale / mine for mine, theirs in zip(*times, strict=False)])
    record = {
        "benchmark": case.benchmark,
        **case.sizes,
        "mode": case.mode,
        "repetitions": min(map(len, times)),
        "subject_seconds": subject,
        "reference_seconds": reference * case.scale,
        "ratio": reference * case.scale / subject,
        "ratio_low": low,
        "ratio_high": high,
        "torchs_own": case.torchs_own,
        **case.extra,
    }
    if case.memory:
        del both
        record["subject_peak_bytes"] = peak_bytes(case.subject, device)
        record["reference_peak_bytes"] = peak_bytes(case.reference, device)
    return record


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return a distribution-free confidence interval of the median, at least at ``CONFIDENCE``.

    Its bounds are two of the ratios, chosen by rank (David and Nagaraja, "Order Statistics", section 7.1); of too few
    ratios they are the smallest and the largest.
    """
    n, rank = len(ratios), 0
    outside = 2.0 * math.comb(n, 0) / 2**n
    while rank + 1 < n / 2 and outside + 2.0 * math.comb(n, rank + 1) / 2**n <= 1 - CONFIDENCE:
        rank += 1
        outside += 2.0 * math.comb(n, rank) / 2**n
    ordered = sorted(ratios)
    return ordered[rank], ordered[n - 1 - rank]


def verdict(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Summarise the comparisons with torch's own code: which were slower here. None where there are none.

    A record is ``slower`` where its ratio and the whole interval lie below ``NOTABLE``, and ``unsure`` where only the
    ratio does: the machine was too busy to tell.
    """
    compared = [record for record in records if record["torchs_own"]]
    if not compared:
        return None
    below = [record for record in compared if record["ratio"] < NOTABLE]
    return {
        "benchmark": "slower_than_torch",
        "compared": len(compared),
        "slower": [record for record in below if record["ratio_high"] < NOTABLE],
        "unsure": [record for record in below if record["ratio_high"] >= NOTABLE],
        "lowest_ratio": min(record["ratio"] for record in compared),
    }


def _in_turns(both: list[Callable[[], object]], device: torch.device) -> list[list[float]]:
    """Time both alternately after a warm-up; return the seconds of each."""
    for run in both:
        seconds_of(run, device)  # allocates, compiles and draws what is needed once
    takes = [seconds_of(run, device) for run in both]
    counts = [FEWEST if seconds > LONG_SECONDS else REPETITIONS for seconds in takes]
    times: list[list[float]] = [[], []]
    began = time.perf_counter()
    for number in range(MOST):
        if number >= max(counts) and (max(takes) > SHORT_SECONDS or time.perf_counter() - began > BRIEF_SECONDS):
            break
        for mine, run, count, seconds in zip(times, both, counts, takes, strict=True):
            if number < count or number >= max(counts):
                if seconds < SHORT_SECONDS:
                    run()  # fills the caches again after the other one
                mine.append(seconds_of(run, device))
    return times


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return ``run`` as a CUDA graph on a GPU, whose time is that of its kernels without their launches."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()  # compiles and allocates what is needed once
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay(reads: object = run) -> object:
        """Replay the graph; the default argument keeps alive the tensors of ``run`` that it reads."""
        del reads
        graph.replay()
        return results

    return replay


def peak_bytes(make: Make, device: torch.device) -> int:
    """Return the peak memory in bytes of preparing a task and running it twice, beyond what torch itself takes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run = make(device)
        run()
        run()
        return int(torch.cuda.max_memory_allocated(device))
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_peak_of_a_process, args=(make, torch.get_num_threads(), sending))
    process.start()
    sending.close()
    peak: int = receiving.recv()
    process.join()
    return peak


def _peak_of_a_process(make: Make, threads: int, sending: Any) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # torch warns that CSR is in beta
    x = torch.ones(64, 64, requires_grad=True)
    torch.sparse.sampled_addmm(x.detach().to_sparse_csr(), x @ x, x).sum().backward()  # loads the kernels' code
    before = psutil.Process().memory_info().rss
    run = make(torch.device("cpu"))
    run()
    run()
    sending.send(max(0, _most_memory() - before))


def _most_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    with contextlib.suppress(OSError):  # on Linux ru_maxrss would start from the parent's
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
