"""Where the program is: its config files, inside the package or beside it in a checkout, and the commit it is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

COMMIT = "git_commit"
"""A file beside a copy of the package: the commit of the checkout that it was copied from."""


def config_dir() -> Path:
    """The absolute path of ``configs/``."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def groups(own: Path | None = None) -> dict[str, list[str]]:
    """The choices of every config group, e.g. ``{"model": ["mixer", "mlp", ...]}``; ``own`` has more of the user's."""
    names = [group.name for group in config_dir().iterdir() if group.is_dir() and group.name not in ("hydra", "wandb")]
    places = [config_dir(), own] if own else [config_dir()]
    return {
        name: sorted({file.stem for place in places for file in (place / name).glob("*.yaml")})
        for name in sorted(names)
    }


def git_commit() -> str | None:
    """The commit of the checkout that the program runs from, ``-dirty`` with changes; None where it is installed."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        kept = root / COMMIT
        return kept.read_text().strip() or None if kept.is_file() else None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
