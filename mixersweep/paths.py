"""The default directories of config files, runs, sweeps, data, compiled code, reports and analyses."""

from __future__ import annotations

import os
from pathlib import Path

from mixersweep.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_CACHE = "~/.cache/mixersweep"


def config_dir() -> Path:
    """The absolute path of ``configs/``: inside an installed package, or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def expand_home(path: str | Path, setting: str = "") -> Path:
    """The path with ``~`` replaced by the home directory; raises ``UserError`` where there is none.

    A container whose user is not in its image's list of users has none until HOME is set.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        which = f"{setting}={path}" if setting else str(path)
        raise UserError(f"{which}: there is no such home directory here (HOME is not set?); say a whole path") from None


def config_groups(user_dir: Path | None = None) -> dict[str, list[str]]:
    """The choices of every config group, e.g. ``{"model": ["mixer", "mlp", ...]}``; ``user_dir`` adds the user's."""
    names = [group.name for group in config_dir().iterdir() if group.is_dir() and group.name not in ("hydra", "wandb")]
    folders = [config_dir(), user_dir] if user_dir else [config_dir()]
    return {
        name: sorted({file.stem for folder in folders for file in (folder / name).glob("*.yaml")})
        for name in sorted(names)
    }


def runs_dir() -> Path:
    """The default directory of runs, the same as in ``configs/train.yaml``; raises as ``expand_home`` does."""
    return expand_home(os.environ.get("MIXERSWEEP_RUNS") or "runs", "MIXERSWEEP_RUNS")


def data_dir(setting: str = "data_dir") -> Path:
    """The default directory of data sets, the same as in ``configs/train.yaml``; raises as ``expand_home`` does."""
    return expand_home(os.environ.get("MIXERSWEEP_DATA") or _CACHE, setting)


def cache_dir(kind: str) -> Path:
    """The directory that caches code compiled on this machine, one per kind; raises as ``expand_home`` does."""
    return expand_home(_CACHE) / kind


def sweeps_dir(runs_dir: Path) -> Path:
    """The directory of sweeps' own files among these runs, with a folder per sweep."""
    return runs_dir / ".sweeps"


def report_dir() -> Path:
    """The default output directory of ``report``."""
    return Path("report")


def analysis_dir(verb: str) -> Path:
    """The default output directory of ``analyze VERB``."""
    return Path("analysis") / verb
