"""Read many run directories fast, for status, plan and report: only JSON and the ends of files are read.

Ten thousand directories take about two seconds, cached by the system or not. A directory that cannot be read is listed
as ``broken`` with its reason; anything else (``.sweeps``, temporary files, the user's own) is skipped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mixersweep.budget import Architecture
from mixersweep.config import VARIANTS, keys
from mixersweep.errors import UserError
from mixersweep.paths import expand_home
from mixersweep.runs.experiment import flatten
from mixersweep.runs.record import KEYS, planned_record_of
from mixersweep.runs.state import State
from mixersweep.runs.status import Status, status_of

METRICS = (
    *("epoch", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("test_loss", "test_accuracy", "images_per_second"),
)
"""The keys of the record that an unfinished run takes from its last row of metrics."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RUN_NAME = re.compile(r"-[0-9a-f]{16}$")
_ROW_BYTES = 2048

READ_WHOLE = frozenset({"status.json", "planned.json", "result.json"})
"""The files of a run that are read completely."""


@dataclass(frozen=True)
class Listed:
    """One run directory, read once.

    ``state`` is as shown: ``lost`` where the process that ran it is gone, ``broken`` (with the ``reason``) where the
    directory cannot be read. ``stored`` is what was frozen (``config``, ``architecture``, ``origin``, ...), empty in a
    broken one; ``rows`` are the last few of the metrics of a run that is not completed, ``result`` the record of one
    that is. ``job``, what its scheduler says of that (``job_state``), and what becomes of the run or has to be done
    (``next``) are there once the scheduler was asked.
    """

    path: Path
    state: State
    status: Status
    stored: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] | None = None
    reason: str | None = None
    job: str | None = None
    job_state: str | None = None
    next: str | None = None

    @property
    def name(self) -> str:
        """The run's name, which is that of its directory where it is broken."""
        return str(self.stored.get("name", self.path.name))

    @property
    def row(self) -> Mapping[str, Any] | None:
        """The last row of metrics of a run that is not completed, or None."""
        return self.rows[-1] if self.rows else None

    @property
    def config(self) -> Mapping[str, Any]:
        """The frozen settings, nested as in ``config.yaml``; empty in a broken one."""
        config: Mapping[str, Any] = self.stored.get("config", {})
        return config

    @cached_property
    def planned(self) -> dict[str, Any]:
        """What the record says before training (``record.planned_record``); only the name in a broken one."""
        return planned_record_of(self.stored) if self.stored else {"name": self.name}

    @property
    def record(self) -> dict[str, Any]:
        """Every key of ``result.json``; None for values not known yet, or of a broken directory."""
        return {**dict.fromkeys(KEYS), **self.planned, **(self.result or {})}

    def values(self) -> dict[str, Any]:
        """Every name that a ``--where`` knows (``value_names``), the record's before settings of the same name."""
        row = self.row or {}
        status = self.status
        return {
            **dict(flatten(self.config)),
            **self.stored.get("architecture", {}),
            "epoch": None if self.result is None else self.result.get("epochs"),
            **{name: row[name] for name in METRICS if name in row},
            **self.planned,
            **(self.result or {}),
            "state": self.state,
            "error": self.reason or status.error,
            "host": status.host and status.host.partition("/")[0],
            "run_dir": str(self.path),
        }


def value_names() -> list[str]:
    """Every name that ``Listed.values`` may have."""
    settings = [key for key, annotation in keys() if not dataclasses.is_dataclass(annotation) and key not in VARIANTS]
    sizes = [field.name for field in dataclasses.fields(Architecture)]
    return [*dict.fromkeys([*KEYS, *METRICS, *sizes, *settings, "state", "error", "host", "run_dir"])]


def listing(directories: Iterable[Path]) -> Iterator[Listed]:
    """List every run in directories of runs, sorted by name, and run directories given themselves.

    Raises ``UserError`` for a path that is no directory. A directory that disappears meanwhile is skipped.
    """
    seen: set[str] = set()
    for directory in directories:
        path = expand_home(directory).absolute()
        try:
            found = sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))
        except OSError as error:
            reason = "no such directory" if isinstance(error, FileNotFoundError) else error.strerror
            raise UserError(f"{directory}: {reason}; name a directory of runs (also MIXERSWEEP_RUNS)") from None
        is_run = "config.yaml" in found
        runs = [str(path)] if is_run else [f"{path}/{name}" for name in found]
        with _read_ahead(runs):
            for run in runs:
                if run in seen:
                    continue
                seen.add(run)
                listed = read_listed(run)
                if listed is not None:
                    yield listed


@contextmanager
def _read_ahead(runs: Sequence[str]) -> Iterator[None]:
    """Prefetch the files of the next runs while earlier ones are parsed, since reading takes as long as parsing."""
    with ThreadPoolExecutor(4) as pool:
        for first in range(0, len(runs) if hasattr(os, "posix_fadvise") else 0, 64):
            pool.submit(_prefetch, runs[first : first + 64])
        try:
            yield
        finally:
            pool.shutdown(cancel_futures=True)


def _prefetch(runs: Sequence[str]) -> None:
    for run in runs:
        with suppress(OSError):  # the actual read reports it
            for name in READ_WHOLE.intersection(os.listdir(run)):  # noqa: PTH208
                descriptor = os.open(f"{run}/{name}", os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                os.close(descriptor)


def read_listed(path: str | Path) -> Listed | None:
    """Read one run directory; None if ``path`` is not one, or is gone."""
    path = str(path)
    try:
        files = os.listdir(path)  # noqa: PTH208 (a Path for each of 50,000 files takes longer than reading them)
    except OSError as error:
        if isinstance(error, PermissionError) and _RUN_NAME.search(path):
            return _broken(path, "cannot be read: permission denied")
        return None
    is_run = "status.json" in files or "planned.json" in files or bool(_RUN_NAME.search(path))
    if not is_run or not ("config.yaml" in files or "status.json" in files):
        return None
    try:
        return _read(path, files)
    except FileNotFoundError as error:
        return _broken(path, f"{Path(error.filename).name} is missing") if Path(path).is_dir() else None
    except OSError as error:
        return _broken(path, f"{Path(error.filename).name} cannot be read: {error.strerror}")
    except _Unreadable as error:
        return _broken(path, str(error))


class _Unreadable(Exception):
    """The reason why a directory is broken."""


def _broken(path: str, reason: str) -> Listed:
    return Listed(Path(path), State.BROKEN, Status(State.PLANNED), {}, reason=reason)


def _read(path: str, files: list[str]) -> Listed:
    if "config.yaml" not in files:
        raise _Unreadable("config.yaml is missing")
    status = status_of(_read_bytes(f"{path}/status.json")) if "status.json" in files else Status(State.PLANNED)
    stored = _read_stored(path, files)
    if status.state is State.COMPLETED:
        if "result.json" not in files:
            raise _Unreadable("is completed, but result.json is missing")
        return Listed(Path(path), State.COMPLETED, status, stored, result=_read_json(f"{path}/result.json"))
    rows = last_rows(f"{path}/metrics.jsonl") if "metrics.jsonl" in files else ()
    return Listed(Path(path), status.shown, status, stored, rows)


def _read_stored(path: str, files: list[str]) -> Mapping[str, Any]:
    """Read the stored run from ``planned.json``, or from ``config.yaml`` in directories of older versions."""
    if "planned.json" in files:
        file, stored = "planned.json", _read_json(f"{path}/planned.json")
    else:
        file = "config.yaml"
        try:
            stored = yaml.load(_read_bytes(f"{path}/{file}"), Loader=_Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _Unreadable(f"{file} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(stored, dict):
            raise _Unreadable(f"{file} is not of a run")
    try:
        planned_record_of(stored)
    except (KeyError, TypeError) as error:
        raise _Unreadable(f"{file} is incomplete: {error}") from None
    return stored


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except ValueError as error:
        raise _Unreadable(f"{Path(path).name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _Unreadable(f"{Path(path).name} is no JSON object")
    return content


def _read_bytes(path: str) -> bytes:
    """Read a small file completely."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(descriptor, 1 << 16)]
        while len(parts[-1]) == 1 << 16:
            parts.append(os.read(descriptor, 1 << 16))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def last_rows(path: str) -> tuple[dict[str, Any], ...]:
    """Read the last complete rows of a ``metrics.jsonl``: those in its last 2 kB, and at least one if it has any."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        length = _ROW_BYTES
        while True:
            start = max(0, size - length)
            lines = os.pread(descriptor, size - start, start).split(b"\n")[:-1]  # drop a line cut off by a crash
            whole = lines if start == 0 else lines[1:]
            if whole or start == 0:
                break
            length *= 8
    finally:
        os.close(descriptor)
    try:
        return tuple(json.loads(line) for line in whole)
    except ValueError as error:
        raise _Unreadable(f"metrics.jsonl: {error}") from None
