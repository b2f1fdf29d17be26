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
from mixersweep.sweeps.launchers.slurm_queue import refusal

LOGS = "{job}_0_log.out"
"""The name of a job's log, in the directory of its array's record; ``{job}`` is the job's id."""

OF_JOB = ("SLURM_", "SLURMD_", "SRUN_")
OF_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
"""Prefixes of the variables that Slurm sets in a job's environment, and those that describe the cluster instead."""


def script(record: Path, asked: Mapping[str, str | int | float | bool | None], code: Path) -> str:
    """Return the batch script of the array that ``record`` describes; options that are None or False are left out.

    ``code`` is the directory that its jobs import mixersweep from, whatever their working directory is.
    """
    log = str(record.parent / LOGS.format(job="%A_%a"))
    options = {**asked, "nodes": 1, "requeue": True, "open_mode": "append", "output": log}
    given = {
        name.replace("_", "-"): value for name, value in options.items() if value is not None and value is not False
    }
    flags = [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in sorted(given.items())
    ]
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    path = os.pathsep.join(dict.fromkeys([str(code), *known]))
    cpus = given.get("cpus-per-task")
    step = [  # srun does not take the number of cores from sbatch
        *("srun", "--unbuffered", f"--output={log}", *([f"--cpus-per-task={cpus}"] if cpus else [])),
        *(sys.executable, "-u", "-m", "mixersweep.sweeps.launchers.slurm_job", str(record)),
    ]
    lines = ["#!/bin/bash", *flags, "", f"export PYTHONPATH={shlex.quote(path)}", "export PYTHONSAFEPATH=1"]
    return "\n".join([*lines, shlex.join(step), ""])


def submit(text: str, path: Path) -> str:
    """Write a script to ``path``, submit it, and return its array's id; raises ``UserError`` if Slurm refuses it."""
    path.write_text(text)
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, env=outside_of_a_job())
    if done.returncode:
        path.unlink()
        raise UserError(f"hydra/launcher=slurm: {refusal(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def outside_of_a_job() -> dict[str, str]:
    """Return the environment without variables of a job that this process may be part of: sbatch would pass them on.

    Variables that locate the cluster stay, and so do the user's own options for sbatch (``SBATCH_*``).
    """
    return {name: value for name, value in os.environ.items() if name in OF_CLUSTER or not name.startswith(OF_JOB)}


def snapshot(folder: Path) -> Path:
    """Copy the program to ``folder/HASH``, so that jobs run the version that was submitted; returns the copy's path.

    Raises ``UserError`` if it cannot be written.
    """
    package = Path(__file__).resolve().parents[2]
    sources = {Path("mixersweep") / file.relative_to(package): file for file in _files(package)}
    if config_dir().parent != package:  # beside it, in a checkout
        sources |= {
            Path("mixersweep", "configs") / file.relative_to(config_dir()): file for file in _files(config_dir())
        }
    digest = hashlib.sha256()
    for name, file in sorted(sources.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    place = folder / digest.hexdigest()[:16]
    if place.is_dir():
        return place
    temporary = folder / f".{place.name}.{secrets.token_hex(4)}.tmp"
    try:
        for name, file in sources.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, temporary / name)
        (temporary / COMMIT_FILE).write_text(f"{git_commit() or ''}\n")
        temporary.rename(place)
    except OSError as error:
        if not place.is_dir():  # otherwise another process was first
            raise UserError(f"{place}: no copy of the program can be made there: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
