"""A home of their own and a server of their own for all that talks to W&B."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.loopback import Loopback
from tests.tracking.training import KEY


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No W&B settings, keys or folders of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("WANDB_", "XDG_", "MIXERSWEEP_")) or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A W&B that is there, and a key for it."""
    loopback = Loopback()
    monkeypatch.setenv("WANDB_BASE_URL", loopback.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds; 15 unless told
    yield loopback
    loopback.stop()
    assert KEY.encode() not in loopback.uploaded
