"""Where the config files are: inside an installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from mixersweep.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The absolute path of ``configs/``."""
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
