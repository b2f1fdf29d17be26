"""One directory per run, through which training, sweeps, reports and mirrors share all files.

runs/<readable name>-<16 hex of the fingerprint>/
    config.yaml      resolved and frozen: what `train run_dir=DIR` reads, and nothing else
    planned.json     the same in JSON, which is faster to read for many runs (``listing``)
    status.json      state, host, pid, heartbeat, error (``status``)
    metrics.jsonl    a row for each epoch
    probes.jsonl     a row for each probed epoch (``probes=``)
    checkpoint.pt    model, optimiser and the rows so far
    predictions.npz  of the test images, at the end
    result.json      the record (``record``)
    tracking.json    the id of its W&B run
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mixersweep.budget import Architecture
from mixersweep.config import Config, architecture, parse
from mixersweep.errors import UserError
from mixersweep.paths import expand_home
from mixersweep.runs.experiment import fingerprint, with_execution_of
from mixersweep.runs.files import read_json, sha256_of, write_json, write_text
from mixersweep.runs.state import State
from mixersweep.runs.status import Status, read_status, set_status

T = TypeVar("T")

SCHEMA_VERSION = 1
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Origin:
    """How a run was requested; part of its record but not of its fingerprint."""

    experiment: str | None = None
    sweep: str | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A config with its solved network: all that is known of a run before it trains."""

    config: Config
    architecture: Architecture
    origin: Origin
    fingerprint: str

    @property
    def name(self) -> str:
        """A readable name and the first 16 hex digits of the fingerprint."""
        sizes = f"w{self.architecture.width}-c{self.architecture.connections}"
        return f"{self.config.model.name}-{sizes}-{self.config.data.name}-s{self.config.seed}-{self.fingerprint[:16]}"


def solve(config: Config, origin: Origin | None = None) -> Run:
    """Solve a config for its network and fingerprint; raises ``UserError`` where no network meets it."""
    sizes = architecture(config)
    solved = dataclasses.replace(
        config,
        model=config.model.with_file_hashes(sha256_of),
        width=sizes.width,
        budget="connections",  # the solved tokens, channels and connections determine the network
        connections=sizes.connections if isinstance(sizes.connections, int) else "auto",
        count="formula",
        weights="auto",
        flops="auto",
        tokens=sizes.tokens or "auto",
        channels=sizes.channels or "auto",
        density="auto",
        expansion=sizes.expansion if config.expansion == "auto" else config.expansion,
        run_dir=None,
        data=dataclasses.replace(config.data, root=config.data.root and _make_absolute(config.data.root)),
        data_dir=_make_absolute(config.data_dir),
    )
    return Run(solved, sizes, origin or Origin(), fingerprint(solved, sizes))


def _make_absolute(path: str) -> str:
    """Make a path absolute, so that a run can be resumed from anywhere; a path with ~ stays as it is."""
    return path if path.startswith("~") else str(Path(path).absolute())


def sizes_of(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sizes of a stored run; those missing in runs of older versions are computed from the others."""
    sizes: Mapping[str, Any] = stored["architecture"]
    if "connections_real" in sizes:
        return sizes
    readout_key = {"pool": "embedding_channels", "linear": "width"}.get(stored["config"]["model"].get("head"))
    matrices = round(sizes["total_connections"] / sizes["connections_counted"])
    skip_names = ("skip_connections", "skip_parameters") if sizes["tokens"] else ()  # else counted with the rest
    skip_sizes = [sizes[name] for name in skip_names] or [0, 0]
    weights = sizes["mixing_parameters"] if sizes["tokens"] or readout_key else sizes["total_connections"]
    return {
        "readout_dimension": None if readout_key is None else sizes.get(readout_key),
        "connections_real": (sizes["total_connections"] + skip_sizes[0]) / matrices,
        "weights_real": (weights + skip_sizes[1]) / matrices,
        **{f"{name}_target": None for name in ("connections_real", "weights_real", "flops")},
        **sizes,
    }


class RunDirectory:
    """The files of a run: ``create`` makes the directory or finds it, ``open`` reads an existing one."""

    def __init__(self, path: Path, run: Run, frozen: Run | None = None) -> None:
        self.path = path
        self.run = run
        self._frozen = frozen

    @classmethod
    def create(cls, run: Run, runs_dir: Path) -> RunDirectory:
        """Make the directory of this run, or open it if it exists; its stored experiment is kept.

        Execution settings (where and how it runs) are the new ones, since they are not part of the experiment.
        """
        path = expand_home(runs_dir, "runs_dir").absolute() / run.name
        if not (path / "config.yaml").exists() and _create(path, run):
            return cls(path, run, run)
        stored = cls.open(path).run
        if stored.fingerprint != run.fingerprint:
            raise UserError(f"{path}: holds another experiment ({stored.fingerprint}, not {run.fingerprint})")
        return cls(path, dataclasses.replace(stored, config=with_execution_of(stored.config, run.config)), stored)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the run stored in ``path/config.yaml``; raises ``UserError`` if that is missing or unreadable."""
        try:
            stored = yaml.load((path / "config.yaml").read_text(), Loader=_Loader)
        except OSError:
            raise UserError(f"run_dir={path}: no run directory, it has no config.yaml") from None
        except yaml.YAMLError as error:
            raise UserError(f"run_dir={path}: config.yaml cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(stored, dict) or stored.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"run_dir={path}: config.yaml is not of schema_version {SCHEMA_VERSION}")
        try:
            sizes, origin = Architecture(**sizes_of(stored)), Origin(**stored["origin"])
            run = Run(parse(stored["config"]), sizes, origin, stored["fingerprint"])
        except (KeyError, TypeError) as error:
            raise UserError(f"run_dir={path}: config.yaml is incomplete: {error}") from None
        if run.fingerprint != fingerprint(run.config, run.architecture):
            raise UserError(
                f"run_dir={path}: config.yaml was changed by hand, or is of a mixersweep with other numbers; "
                "start the run anew from its settings, or restore the file"
            )
        return cls(path, run)

    def freeze(self) -> None:
        """Store the current execution settings, so that the run can be resumed from its directory alone.

        The settings of the experiment stay as they were stored first.
        """
        if (self._frozen or RunDirectory.open(self.path).run) != self.run:
            _freeze(self.path, self.run)
            self._frozen = self.run

    @property
    def checkpoint(self) -> Path:
        """The path of the checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def predictions(self) -> Path:
        """The path of the predictions on the test images."""
        return self.path / "predictions.npz"

    def status(self) -> Status:
        """Read the stored state and the process that holds the run."""
        return read_status(self.path)

    def result(self) -> dict[str, Any] | None:
        """Read the record of a completed run, or None."""
        return None if self.status().state is not State.COMPLETED else read_json(self.path / "result.json")

    def write_result(self, record: Mapping[str, Any]) -> Path:
        """Write ``result.json`` atomically and return its path."""
        write_json(self.path / "result.json", record)
        return self.path / "result.json"

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of ``metrics.jsonl``, without a last line cut off by a crash."""
        return read_rows(self.path / "metrics.jsonl")

    def append_row(self, *rows: Mapping[str, Any]) -> None:
        """Append the rows of one or more epochs to ``metrics.jsonl`` and flush them to disk."""
        _append(self.path / "metrics.jsonl", *rows)

    def restore_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make ``metrics.jsonl`` agree with the rows that a checkpoint holds."""
        content = b"".join(_json_line(row) for row in rows)
        path = self.path / "metrics.jsonl"
        if not path.exists() or path.read_bytes() != content:
            write_text(path, content.decode())

    def probes(self) -> list[dict[str, Any]]:
        """Read the rows of ``probes.jsonl``, flat; empty without probes."""
        return read_rows(self.path / "probes.jsonl")

    def append_probe(self, row: Mapping[str, Any]) -> None:
        """Append one epoch's measurements to ``probes.jsonl`` and flush them to disk."""
        _append(self.path / "probes.jsonl", row)

    def restore_probes(self, epochs: int) -> None:
        """Drop the rows after ``epochs``, which are trained again, and a line cut off by a crash."""
        path = self.path / "probes.jsonl"
        if path.exists():
            write_text(path, b"".join(_json_line(row) for row in self.probes() if row["epoch"] <= epochs).decode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the complete rows of a JSON Lines file; empty where there is none."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _append(path: Path, *rows: Mapping[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(map(_json_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def _json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _freeze(path: Path, run: Run) -> None:
    """Write ``config.yaml`` and ``planned.json`` of a run into a directory."""
    stored = {
        "schema_version": SCHEMA_VERSION,
        "name": run.name,
        "fingerprint": run.fingerprint,
        "origin": dataclasses.asdict(run.origin),
        "config": dataclasses.asdict(run.config),
        "architecture": dataclasses.asdict(run.architecture),
    }
    write_text(path / "config.yaml", yaml.dump(stored, Dumper=_Dumper, sort_keys=False))
    write_text(path / "planned.json", json.dumps(stored, allow_nan=False) + "\n")  # on a line: a third of the time


def _create(path: Path, run: Run) -> bool:
    """Make the directory under a temporary name and rename it, so that it appears complete; False if it was there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"runs_dir={path.parent}: cannot be written: {error.strerror}") from None
    try:
        _freeze(temporary, run)
        set_status(temporary, Status(State.PLANNED))
        write_json(temporary / "tracking.json", {"id": f"{run.fingerprint[:16]}-{secrets.token_hex(2)}"})
        temporary.rename(path)
        return True
    except OSError as error:
        if not (path / "config.yaml").exists():  # otherwise another process made it first
            remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "move away what is there"
            raise UserError(f"{path}: cannot be made ({error.strerror}); {remedy}") from None
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
