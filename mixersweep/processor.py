"""The CPU's instruction sets, and how many of its cores this process may use; without torch."""

from __future__ import annotations

import contextlib
import os
import socket
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mixersweep.errors import UserError

CPUINFO = Path("/proc/cpuinfo")

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

INSTRUCTIONS = {
    "bf16": {"avx512_bf16": "AVX512_BF16", "amx_bf16": "AMX", "bf16": "Arm's BF16"},
    "fp16": {"avx512_fp16": "AVX512_FP16", "amx_fp16": "AMX", "asimdhp": "Arm's FP16"},
}
"""For each precision the CPU flags of its instruction sets, any one of which suffices, with their names."""


def torchrun_number(name: str, default: int) -> int:
    """A number that torchrun sets, e.g. ``WORLD_SIZE``; empty counts as unset. Raises ``UserError`` for other text."""
    value = os.environ.get(name) or str(default)
    if not value.strip().isdecimal():
        raise UserError(f"{name}={value}: torchrun sets it to a whole number; unset it to train in one process")
    return int(value)


def cores() -> list[int]:
    """The cores that this process may use: those in its CPU affinity, at most as many as its CPU quota allows.

    A container may see 64 cores and have a quota of two. The first of its two is then chosen by a hash of the host
    name, so that containers on one machine do not all choose the same cores.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    bound = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    allowed = quota(CGROUPS, OWN_CGROUPS)
    if allowed is None or allowed >= len(bound):
        return bound
    count, first = max(1, int(allowed)), zlib.crc32(socket.gethostname().encode()) % len(bound)
    return sorted(bound[(first + i) % len(bound)] for i in range(count))


def allot(cores: Sequence[int], size: int, count: int) -> list[list[int]]:
    """Allot ``size`` cores to each of ``count`` processes in turn; from the first again once all are taken."""
    return [[cores[(i * size + k) % len(cores)] for k in range(size)] for i in range(count)]


def quota(cgroups: Path, own: Path) -> float | None:
    """The CPU quota of this process's control groups, in cores; None where there is no limit.

    ``own`` is the file that lists the groups. The smallest quota of a group and its ancestors counts; inside a
    container its own group is the root.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, group in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = [cgroups] if not controllers else [cgroups / controllers, cgroups / "cpu"]
        for root in mounted:
            deepest = root / group.strip("/")
            for folder in (deepest, *deepest.parents):
                if folder == cgroups.parent or not folder.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                    found.append(_read_quota(folder, is_version_2=not controllers))
    return min((share for share in found if 0 < share < float("inf")), default=None)


def _read_quota(group: Path, *, is_version_2: bool) -> float:
    """The quota of one group in cores; raises ``ValueError`` where it has none."""
    if is_version_2:
        most, period = (group / "cpu.max").read_text().split()
    else:
        most, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return float(most) / float(period) if most != "max" else float("inf")


def slow_precision_warning(precision: str) -> str | None:
    """A warning that this CPU trains more slowly in this precision than in fp32; None if it does not, or unknown."""
    wanted, found = INSTRUCTIONS.get(precision, {}), flags(CPUINFO)
    if not wanted or not found or wanted.keys() & found:
        return None
    return (
        f"precision={precision}: this CPU has no instructions for it ({', '.join(wanted.values())}); Mixers were seen "
        "to take 4 times as long in it as in fp32, and convolutions 10 times and more"
    )


def flags(cpuinfo: Path) -> frozenset[str]:
    """The feature flags of the first processor; empty where the kernel does not list them."""
    lines = first_processor(cpuinfo)
    return frozenset(lines.get("flags", lines.get("Features", "")).split())


def vendor_and_family(cpuinfo: Path) -> tuple[str, int]:
    """Vendor and family of the first x86 processor: ``("AuthenticAMD", 26)`` is a Zen 5, ``("", 0)`` unknown."""
    lines = first_processor(cpuinfo)
    family = lines.get("cpu family", "")
    return lines.get("vendor_id", ""), int(family) if family.isdecimal() else 0


@cache
def first_processor(cpuinfo: Path) -> dict[str, str]:
    """The fields of the first processor in ``cpuinfo`` by name; empty where there is no such file."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, _, words in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), words.strip())
    return found
