"""Which W&B run mirrors a run directory (``tracking.json``), and what of it was uploaded (``wandb/uploaded.json``).

The first holds the id, which is random, since W&B does not accept the id of a deleted run again. Under ``wandb agent``
the agent's id is used, and its project and entity stay with the run. The second is written when all that there was has
been uploaded, so that it is not uploaded again. This module does not import wandb.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from mixersweep.config.schema import Tracking
from mixersweep.errors import UserError
from mixersweep.runs.files import read_json, write_json
from mixersweep.runs.state import State

LOG = "mirror.log"
"""The log, in ``RUN_DIR/wandb/``, of the processes that wrote to W&B."""

RESULT_PREFIX, MIRRORED = "W&B: ", "all of the run is mirrored"
"""The prefix of the log's last line, the result of mirroring, and the rest of it where there was no problem."""

OFFLINE = "written offline"
"""The result of a run that the client wrote into its directory, since there is no API key or it was told so."""

HANDED_OVER = "handed over to the mirror of its job"
"""What stands in place of a result until the mirror of the job has one."""

PAGE_PREFIX = "W&B page: "
"""The prefix of the log's line with the URL of a run that is online."""

NO_KEY = "there is no W&B API key here: `wandb login`, or WANDB_API_KEY"

_SWEEP, _RUN, _VALUES = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"
"""The variables that ``wandb agent`` sets for each run that it starts, besides project and entity."""


def project_of(run_url: str) -> str:
    """The URL of the project of a run at W&B."""
    return run_url.rpartition("/runs/")[0]


def check_project(project: str, setting: str) -> None:
    """Raise ``UserError`` for the name of a project that W&B refuses; ``setting`` is what precedes it in the error."""
    if odd := re.search(r"[/\\#?%:]", project):
        nearest = re.sub(r"[/\\#?%:]+", "-", project)
        why = f"the user or team is {setting[:-1].replace('project', 'entity')}"
        why = why if odd[0] == "/" else f"the nearest is {nearest}"
        raise UserError(f"{setting}{project}: W&B takes no {odd[0]} in the name of a project; {why}")


@dataclass(frozen=True)
class Destination:
    """Where a run goes at W&B; an ``entity`` of None is the default one of the API key."""

    project: str
    entity: str | None = None


@dataclass(frozen=True)
class Identity:
    """The id of a run at W&B; ``project`` and ``entity`` are set only where an agent decided them."""

    id: str
    project: str | None = None
    entity: str | None = None

    def destination(self, tracking: Tracking) -> Destination:
        """Where the run goes: as the agent decided, else as the settings say."""
        return Destination(self.project or tracking.project, self.entity or tracking.entity)

    def redrawn(self) -> Identity:
        """The identity with another random suffix, for an id that W&B no longer accepts."""
        return dataclasses.replace(self, id=f"{self.id.rpartition('-')[0] or self.id}-{secrets.token_hex(2)}")


def read_identity(folder: Path) -> Identity:
    """Read the identity kept in a folder, which must have one."""
    return Identity(**read_json(folder / "tracking.json"))


def write_identity(folder: Path, identity: Identity) -> None:
    """Keep an identity in a folder, as ``tracking.json``."""
    known = {name: value for name, value in dataclasses.asdict(identity).items() if value is not None}
    write_json(folder / "tracking.json", known)


def agent_identity() -> Identity | None:
    """The identity that ``wandb agent`` gave to the run of this process; None where no agent started it."""
    if not os.environ.get(_SWEEP) or not os.environ.get(_RUN):
        return None
    return Identity(os.environ[_RUN], os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_ENTITY"))


def remove_agent(environment: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The environment without the variables of ``wandb agent``, for many runs, which cannot all be the agent's."""
    return {name: value for name, value in environment if name not in (_SWEEP, _RUN, _VALUES)}


@dataclass(frozen=True)
class Uploaded:
    """What of a run is at W&B: its rows up to ``epoch``, its final ``state`` and the ``files`` of its artifact."""

    id: str
    project: str
    entity: str | None
    epoch: int | None
    state: str
    files: list[str] = field(default_factory=list)


def read_uploaded(run_dir: Path) -> Uploaded | None:
    """Read what of a run is at W&B; None where nothing was uploaded, or not everything."""
    stored = read_json(run_dir / "wandb" / "uploaded.json")
    return None if stored is None else Uploaded(**stored)


def write_uploaded(run_dir: Path, uploaded: Uploaded | None) -> None:
    """Record what of a run is at W&B; None removes the record."""
    path = run_dir / "wandb" / "uploaded.json"
    if uploaded is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, dataclasses.asdict(uploaded))


def artifact_files(state: State, with_checkpoint: bool) -> list[str]:
    """The files of a finished run that are uploaded as an artifact; none for a run without a result."""
    if state is not State.COMPLETED:
        return []
    return ["config.yaml", "result.json", *(["checkpoint.pt"] if with_checkpoint else [])]


def write_lock(run_dir: Path) -> FileLock:
    """The lock that only the process holds that writes a run to W&B."""
    return FileLock(run_dir / "wandb" / ".lock")
