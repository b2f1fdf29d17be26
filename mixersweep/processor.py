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


@cache
def flags(cpuinfo: Path) -> frozenset[str]:
    """What the kernel says that the first processor can do; nothing where there is no such file, or no such line."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    pairs = (line.partition(":") for line in lines)
    return frozenset(next((words.split() for name, _, words in pairs if name.strip() in ("flags", "Features")), ()))
