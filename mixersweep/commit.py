"""Find the git commit of the program's source."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMIT_FILE = "git_commit"
"""The name of a file beside a copy of the package, with the commit of the checkout that it was copied from."""


def git_commit() -> str | None:
    """Return the commit of the checkout that the program runs from, ``-dirty`` with changes; None if installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        file = root / COMMIT_FILE
        return file.read_text().strip() or None if file.is_file() else None
    try:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        }  # git hooks set them
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()
