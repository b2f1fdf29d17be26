"""Compare runs: one tidy table, the statistics of ``science.md``, figures and a page, all from run directories."""

from mixersweep.report.build import Report, build

__all__ = ["Report", "build"]
