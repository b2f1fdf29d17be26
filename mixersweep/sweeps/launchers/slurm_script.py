"""Write and submit the batch script for ``sbatch``: the resources that a job requests, and the command it executes."""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mixersweep.commit import COMMIT_FILE, git_commit
from mixersweep.errors import UserError
from mixersweep.paths import config_dir
from mixersweep.runs.files import write_text
from mixersweep.sweeps.launchers import python_path
from mixersweep.sweeps.launchers.slurm_queue import error_message

LOG_NAME = "{job}_0_log.out"
"""The name of a job's log, in the directory of its array's record; ``{job}`` is the job's id."""

JOB_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_")
CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
"""Prefixes of the variables that Slurm sets in a job's environment, and those that describe the cluster instead."""


def batch_script(record: Path, options: Mapping[str, str | int | float | bool | None], code: Path) -> str:
    """Return the batch script of the array that ``record`` describes; options that are None or False are left out.

    ``code`` is the directory that its jobs import mixersweep from, whatever their working directory is.
    """
    log = str(record.parent / LOG_NAME.format(job="%A_%a"))
    all_options = {**options, "nodes": 1, "requeue": True, "open_mode": "append", "output": log}
    set_options = {
        name.replace("_", "-"): value for name, value in all_options.items() if value is not None and value is not False
    }
    flags = [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in sorted(set_options.items())
    ]
    cpus = set_options.get("cpus-per-task")
    command = [  # srun does not take the number of cores from sbatch
        *("srun", "--unbuffered", f"--output={log}", *([f"--cpus-per-task={cpus}"] if cpus else [])),
        *(sys.executable, "-u", "-m", "mixersweep.sweeps.launchers.slurm_job", str(record)),
    ]
    exports = [f"export PYTHONPATH={shlex.quote(python_path(code))}", "export PYTHONSAFEPATH=1"]
    return "\n".join(["#!/bin/bash", *flags, "", *exports, shlex.join(command), ""])


def submit(text: str, path: Path) -> str:
    """Write a script to ``path``, submit it, and return its array's id; raises ``UserError`` if Slurm refuses it."""
    write_text(path, text)
    command = ["sbatch", "--parsable", str(path)]
    completed = subprocess.run(command, capture_output=True, text=True, env=environment_outside_job())
    if completed.returncode:
        path.unlink()
        raise UserError(f"hydra/launcher=slurm: {error_message(completed.stderr)}")
    return completed.stdout.strip().partition(";")[0]


def environment_outside_job() -> dict[str, str]:
    """Return the environment without variables of a job that this process may be part of: sbatch would pass them on.

    Variables that locate the cluster stay, and so do the user's own options for sbatch (``SBATCH_*``).
    """
    names = [name for name in os.environ if name in CLUSTER_VARIABLES or not name.startswith(JOB_PREFIXES)]
    return {name: os.environ[name] for name in names}


def snapshot(folder: Path) -> Path:
    """Copy the program to ``folder/HASH``, so that jobs run the version that was submitted; returns the copy's path.

    Raises ``UserError`` if it cannot be written.
    """
    package = Path(__file__).resolve().parents[2]
    sources = {Path("mixersweep") / file.relative_to(package): file for file in _list_files(package)}
    if config_dir().parent != package:  # beside it, in a checkout
        sources |= {
            Path("mixersweep", "configs") / file.relative_to(config_dir()): file for file in _list_files(config_dir())
        }
    digest = hashlib.sha256()
    for name, file in sorted(sources.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    copy = folder / digest.hexdigest()[:16]
    if copy.is_dir():
        return copy
    temporary = folder / f".{copy.name}.{secrets.token_hex(4)}.tmp"
    try:
        for name, file in sources.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, temporary / name)
        (temporary / COMMIT_FILE).write_text(f"{git_commit() or ''}\n")
        temporary.rename(copy)
    except OSError as error:
        if not copy.is_dir():  # otherwise another process was first
            raise UserError(f"{copy}: no copy of the program can be made there: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return copy


def _list_files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
