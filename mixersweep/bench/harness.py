"""Measuring two ways of doing the same: in turns, warmed up, by their medians.

Machines are noisy and each has its own speed, so nothing here is an absolute claim: subject and reference alternate in
one process, each after an untimed run of its own where that is short, as a training repeats itself too, and what counts
is the ratio of their medians. Peak memory is taken in a fresh process for each, since nothing else tells a CPU's.
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
"""Sets something up on a device and returns what is to be timed."""

REPETITIONS, FEWEST, LONG_SECONDS, SHORT_SECONDS = 10, 3, 3.0, 0.1
MOST, BRIEF_SECONDS = 100, 0.5
"""What is brief is repeated more often, up to so many times in so long, for whatever else the machine does disturbs it
more.
"""

NOTABLE = 0.95
"""The ratio below which a path counts as slower than torch's own: a call of ours has its own few microseconds."""

SURE = 0.95
"""The probability that the median of what is repeated lies in the interval that is told of it, at least."""


@dataclass(frozen=True)
class Case:
    """One comparison. ``sizes`` name it; ``scale`` turns the reference's seconds into those of the same work.

    ``once``: both are whole commands, which begin anew each time, and are timed once. ``torchs_own``: the reference is
    what torch itself has for the very same, so that nobody should be worse off with ours (``verdict``).
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
    """The flat record of one comparison; ``ratio`` is reference over subject, above 1 where the subject is faster."""
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
    """Bounds of the median of what these are drawn from: two of them, by rank, whatever the law (David and Nagaraja,
    "Order Statistics", 7.1). They are ``SURE``, or of too few ratios the smallest and the largest.
    """
    n, rank = len(ratios), 0
    outside = 2.0 * math.comb(n, 0) / 2**n
    while rank + 1 < n / 2 and outside + 2.0 * math.comb(n, rank + 1) / 2**n <= 1 - SURE:
        rank += 1
        outside += 2.0 * math.comb(n, rank) / 2**n
    ordered = sorted(ratios)
    return ordered[rank], ordered[n - 1 - rank]


def verdict(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Whether a path was slower here than torch's own, of those that are compared with it; None where none is.

    ``slower`` are those whose ratio lies below ``NOTABLE`` with its whole interval; with only the ratio itself below,
    one is ``unsure``: the machine was too busy to tell.
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
    """The seconds of each, warmed up, in turns."""
    for run in both:
        seconds_of(run, device)  # what is allocated, compiled or drawn once
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
                    run()  # so that it finds the caches as it leaves them, not as the other one did
                mine.append(seconds_of(run, device))
    return times


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On a GPU the same as a CUDA graph, which takes the time of its kernels and not that of launching them."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()  # what is compiled or allocated once
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay(reads: object = run) -> object:
        """The graph reads the tensors of ``run`` where they lie, so they have to stay: with this function."""
        del reads
        graph.replay()
        return results

    return replay


def peak_bytes(make: Make, device: torch.device) -> int:
    """The most memory that setting up and running twice takes beyond what torch takes by itself."""
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
    warnings.simplefilter("ignore")  # torch's, of CSR's being in beta
    x = torch.ones(64, 64, requires_grad=True)
    torch.sparse.sampled_addmm(x.detach().to_sparse_csr(), x @ x, x).sum().backward()  # loads the kernels' code
    before = psutil.Process().memory_info().rss
    run = make(torch.device("cpu"))
    run()
    run()
    sending.send(max(0, _most_memory() - before))


def _most_memory() -> int:
    """The most memory that this process has had, bytes."""
    with contextlib.suppress(OSError):  # Linux's ru_maxrss would be the parent's, which a process starts from
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
