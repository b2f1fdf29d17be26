"""Which run of W&B mirrors a run directory, and how much of it is there: ``tracking.json`` and ``wandb/uploaded.json``.

The first holds the id, drawn once, since W&B takes no id again that was deleted. Under ``wandb agent`` its id wins, and
its project and entity stay with the run. The second is written when all that was there has gone up, so that it goes up
once. Imports no wandb.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from mixersweep.config.schema import Tracking
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State

LOG = "mirror.log"
"""In ``RUN_DIR/wandb/``: all that the processes which wrote to W&B said."""

SAYS, WHOLE = "W&B: ", "all of the run is mirrored"
"""The beginning of the line there with which a mirror ends, and the rest of it where there is no problem."""

NO_KEY = "there is no W&B API key here: `wandb login`, or WANDB_API_KEY"

_SWEEP, _RUN, _VALUES = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"
"""What ``wandb agent`` sets for each run that it starts, beside project and entity."""


@dataclass(frozen=True)
class Place:
    """Where at W&B; an ``entity`` of None is the default one of the key."""

    project: str
    entity: str | None = None


@dataclass(frozen=True)
class Identity:
    """The id at W&B; ``project`` and ``entity`` only where an agent has decided them, else the settings do."""

    id: str
    project: str | None = None
    entity: str | None = None

    def place(self, tracking: Tracking) -> Place:
        """Where the run is."""
        return Place(self.project or tracking.project, self.entity or tracking.entity)

    def redrawn(self) -> Identity:
        """The same with another random end, for an id that W&B takes no more."""
        return dataclasses.replace(self, id=f"{self.id.rpartition('-')[0] or self.id}-{secrets.token_hex(2)}")


def read_identity(folder: Path) -> Identity:
    """The identity of a folder that has one."""
    return Identity(**read_json(folder / "tracking.json"))


def write_identity(folder: Path, identity: Identity) -> None:
    """Keep the identity."""
    known = {name: value for name, value in dataclasses.asdict(identity).items() if value is not None}
    write_json(folder / "tracking.json", known)


def of_agent() -> Identity | None:
    """The identity that ``wandb agent`` gave the run of this process, None where it did not start it."""
    if not os.environ.get(_SWEEP) or not os.environ.get(_RUN):
        return None
    return Identity(os.environ[_RUN], os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_ENTITY"))


def without_agent(environment: Iterable[tuple[str, str]]) -> dict[str, str]:
    """An environment in which no agent's run is going on: for many runs, which cannot all be that one."""
    return {name: value for name, value in environment if name not in (_SWEEP, _RUN, _VALUES)}


@dataclass(frozen=True)
class Uploaded:
    """What of a run is at W&B: the rows up to which epoch, how it was told to have ended, the files of its artifact."""

    id: str
    project: str
    entity: str | None
    epoch: int | None
    state: str
    files: list[str] = field(default_factory=list)


def read_uploaded(run_dir: Path) -> Uploaded | None:
    """What is known to be at W&B; None where nothing is, or not whole."""
    stored = read_json(run_dir / "wandb" / "uploaded.json")
    return None if stored is None else Uploaded(**stored)


def write_uploaded(run_dir: Path, uploaded: Uploaded | None) -> None:
    """Keep that, or that nothing is known."""
    path = run_dir / "wandb" / "uploaded.json"
    if uploaded is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, dataclasses.asdict(uploaded))


def artifact_files(state: State, with_checkpoint: bool) -> list[str]:
    """The files of a run that go up as an artifact when it has ended: none of a run without a result."""
    if state is not State.COMPLETED:
        return []
    return ["config.yaml", "result.json", *(["checkpoint.pt"] if with_checkpoint else [])]


def writing(run_dir: Path) -> FileLock:
    """The lock of the one process that writes a run to W&B."""
    return FileLock(run_dir / "wandb" / ".lock")
