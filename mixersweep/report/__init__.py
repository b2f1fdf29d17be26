"""Compare runs, read from their directories: one tidy table, statistics, figures and a page."""

from mixersweep.report.build import Report, build

__all__ = ["Report", "build"]
