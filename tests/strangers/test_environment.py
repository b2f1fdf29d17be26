"""Variables that other programs leave in the environment."""

import subprocess
from pathlib import Path

import pytest

from mixersweep.commit import git_commit


def git(*words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *words], check=True, capture_output=True)


VALUES = {
    "GIT_DIR": ".git",
    "GIT_WORK_TREE": ".",
    "GIT_INDEX_FILE": ".git/index",
    "GIT_OBJECT_DIRECTORY": ".git/objects",
}


@pytest.mark.parametrize("variables", [("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_INDEX_FILE",), tuple(VALUES)])
def test_a_record_names_our_commit_from_inside_a_hook(
    here: Path, monkeypatch: pytest.MonkeyPatch, variables: tuple[str, ...]
) -> None:
    """git tells its hooks which repository they are of."""
    ours = git_commit()
    git("init", str(here))
    (here / "file").write_text("theirs")
    git("-C", str(here), "add", "file")
    git("-C", str(here), "commit", "-m", "theirs")
    for name in variables:
        monkeypatch.setenv(name, str(here / VALUES[name]))
    assert git_commit() == ours
