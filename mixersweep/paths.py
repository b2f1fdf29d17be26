"""Where things lie by default: config files, runs, sweeps, data, what is compiled, reports and analyses."""

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


def expanded(path: str | Path, setting: str = "") -> Path:
    """The path with ``~`` as the home directory that it means; raises ``UserError`` where there is none.

    In a container of another user than its image knows there is none, until HOME says so.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        which = f"{setting}={path}" if setting else str(path)
        raise UserError(f"{which}: there is no such home directory here (HOME is not set?); say a whole path") from None


def groups(own: Path | None = None) -> dict[str, list[str]]:
    """The choices of every config group, e.g. ``{"model": ["mixer", "mlp", ...]}``; ``own`` has more of the user's."""
    names = [group.name for group in config_dir().iterdir() if group.is_dir() and group.name not in ("hydra", "wandb")]
    places = [config_dir(), own] if own else [config_dir()]
    return {
        name: sorted({file.stem for place in places for file in (place / name).glob("*.yaml")})
        for name in sorted(names)
    }


def runs_dir() -> Path:
    """Where runs are without a setting, as ``configs/train.yaml`` has it too."""
    return expanded(os.environ.get("MIXERSWEEP_RUNS") or "runs", "MIXERSWEEP_RUNS")


def data_dir(setting: str = "data_dir") -> Path:
    """Where data sets are without a setting, as ``configs/train.yaml`` has it too; raises as ``expanded`` does."""
    return expanded(os.environ.get("MIXERSWEEP_DATA") or _CACHE, setting)


def cache_dir(kind: str) -> Path:
    """Where what is compiled on this machine is kept between runs, by its kind; raises as ``expanded`` does."""
    return expanded(_CACHE) / kind


def sweeps_dir(runs_dir: Path) -> Path:
    """Where the sweeps among these runs keep what belongs to no single run, each in a folder of its name."""
    return runs_dir / ".sweeps"


def report_dir() -> Path:
    """Where ``report`` writes."""
    return Path("report")


def analysis_dir(verb: str) -> Path:
    """Where ``analyze VERB`` writes."""
    return Path("analysis") / verb
