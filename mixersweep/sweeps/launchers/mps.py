"""NVIDIA's Multi-Process Service for runs that share a GPU as processes: without it, they take turns on the card.

The daemon is a private one, with its pipes and logs in a temporary directory, which needs no rights and disturbs nobody
else's. It ends with what started it, be that killed: a process of its own (``python -m`` this module) waits for that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"

PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

DEFAULT_PIPES = Path("/tmp/nvidia-mps")
"""Where a daemon has its pipes that was told nothing."""

PATIENCE = 60.0
"""Seconds for the daemon to begin, or to end."""


@contextmanager
def daemon(
    places: Sequence[Mapping[str, str]], report: Callable[[str], None], *, wanted: bool = True
) -> Iterator[dict[str, str]]:
    """A daemon of their own for runs with these environments; yields what their environments have to say of it.

    Nothing, and no daemon, where no two share a GPU, where there is none to be had or one already, and where it does
    not begin: then the runs share the card without. Inside, runs have to end before the daemon does.
    """
    tool = shutil.which(CONTROL)
    gpus = [place["CUDA_VISIBLE_DEVICES"] for place in places if "CUDA_VISIBLE_DEVICES" in place]
    if not wanted or tool is None or len(gpus) == len(set(gpus)) or _runs_already():
        yield {}
        return
    folder = Path(tempfile.mkdtemp(prefix="mps-"))
    own = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
    for path in own.values():
        Path(path).mkdir()
    # Names of GPUs in the runs' environments are those of this process, so the daemon has to know all of them.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | own
    if (failure := _call([tool, "-d"], environment, folder / "said")) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        report(f"runs share a GPU without MPS: {CONTROL} {failure}")
        yield {}
        return
    report("runs share a GPU by an MPS daemon of their own")
    command = [sys.executable, "-P", "-m", __name__, tool, str(folder)]
    known = filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(known)
    pipe = subprocess.PIPE
    # In a session of its own, Ctrl-C does not reach it.
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as ender:
        try:
            yield own
        finally:
            said, _ = ender.communicate()
            if said:
                report(said.strip())


def _end(tool: str, folder: Path) -> None:
    """Wait until who started this process closes its input, by ending if by nothing else, and end the daemon."""
    sys.stdin.read()
    if (failure := _call([tool], os.environ, folder / "said", told="quit\n")) is not None:
        print(f"the MPS daemon in {folder} may be left: {CONTROL} {failure}")
    shutil.rmtree(folder, ignore_errors=True)


def _runs_already() -> bool:
    """Whether the environment names a daemon, or one has its pipes where all look for them."""
    return PIPES in os.environ or (DEFAULT_PIPES / "control").exists()


def _call(command: Sequence[str], environment: Mapping[str, str], said: Path, told: str = "") -> str | None:
    """What went wrong with a command, None where nothing did.

    What it says goes to a file, since a daemon keeps a pipe open; in a session of its own, Ctrl-C does not reach it.
    """
    try:
        with said.open("w") as file, tempfile.TemporaryFile("w+") as asked:
            asked.write(told)
            asked.seek(0)
            done = subprocess.run(
                command,
                env=environment,
                stdin=asked,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=PATIENCE,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be used: {error}"
    if done.returncode == 0:
        return None
    lines = said.read_text(errors="replace").split("\n")
    return f"ended with code {done.returncode}" + (f": {lines[0].strip()}" if lines[0].strip() else "")


if __name__ == "__main__":
    _end(sys.argv[1], Path(sys.argv[2]))
