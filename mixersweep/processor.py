"""What this machine's processor has instructions for, without torch: Linux says it in a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

INSTRUCTIONS = {
    "bf16": {"avx512_bf16": "AVX512_BF16", "amx_bf16": "AMX", "bf16": "Arm's BF16"},
    "fp16": {"avx512_fp16": "AVX512_FP16", "amx_fp16": "AMX", "asimdhp": "Arm's FP16"},
}
"""For each precision the flags of the instruction sets that multiply in it, any of which will do, and their names."""


def slow(precision: str) -> str | None:
    """A sentence on why a CPU trains more slowly in this precision than in fp32; None where it need not, or unknown."""
    wanted, found = INSTRUCTIONS.get(precision, {}), flags(CPUINFO)
    if not wanted or not found or wanted.keys() & found:
        return None
    return (
        f"precision={precision}: this CPU has no instructions for it ({', '.join(wanted.values())}); Mixers were seen "
        "to take 4 times as long in it as in fp32, and convolutions 10 times and more"
    )


def flags(cpuinfo: Path) -> frozenset[str]:
    """What the kernel says that the first processor can do; nothing where there is no such file, or no such line."""
    lines = first(cpuinfo)
    return frozenset(lines.get("flags", lines.get("Features", "")).split())


def vendor_and_family(cpuinfo: Path) -> tuple[str, int]:
    """Of the first x86 processor: ``("AuthenticAMD", 26)`` is a Zen 5; ``("", 0)`` where the kernel does not say."""
    lines = first(cpuinfo)
    family = lines.get("cpu family", "")
    return lines.get("vendor_id", ""), int(family) if family.isdecimal() else 0


@cache
def first(cpuinfo: Path) -> dict[str, str]:
    """The lines on the first processor by their names; none where there is no such file."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, _, words in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), words.strip())
    return found
