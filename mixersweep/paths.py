"""Where the config files are: inside an installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The absolute path of ``configs/``."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def groups() -> dict[str, list[str]]:
    """The choices of every config group, e.g. ``{"model": ["mixer", "mlp", ...]}``."""
    return {
        group.name: sorted(file.stem for file in group.glob("*.yaml"))
        for group in sorted(config_dir().iterdir())
        if group.is_dir() and group.name not in ("hydra", "wandb")
    }
