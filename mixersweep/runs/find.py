"""Find the runs that the user names: directories of runs, and runs by path or name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mixersweep import paths
from mixersweep.errors import UserError


def find_all(named: Iterable[str | Path]) -> list[Path]:
    """Find all named directories, or the default directory of runs if none is named; raises as ``find`` does."""
    return [find(name) for name in named] or [paths.runs_dir()]


def find(named: str | Path, runs_dir: Path | None = None) -> Path:
    """Find the directory at this path, or else the one run in ``runs_dir`` whose name contains it, such as a hash.

    A full match comes before a prefix, and a prefix before any other match. Raises ``UserError`` for no match and for
    several.
    """
    path = paths.expand_home(named)
    if path.exists():
        return path
    name = str(named)
    runs_dir = paths.runs_dir() if runs_dir is None else paths.expand_home(runs_dir)
    if "/" in name:
        raise UserError(f"{named}: no such directory; name a directory of runs, or a run in {runs_dir}")
    entries = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
    runs = [entry.name for entry in entries if name in entry.name and entry.name[0] != "." and entry.is_dir()]
    beginning = [run for run in runs if run.startswith(name)]
    found = [run for run in runs if run == name] or beginning or runs
    if not found:
        raise UserError(f"{named}: no such directory, and no run of this name in {runs_dir} (also MIXERSWEEP_RUNS)")
    if len(found) > 1:
        some = ", ".join(found[:3])
        raise UserError(f"{named}: {len(found):,} runs in {runs_dir} have this in their name ({some}); say more of it")
    return runs_dir / found[0]
