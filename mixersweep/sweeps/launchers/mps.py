"""NVIDIA's Multi-Process Service (MPS), with which processes that share a GPU run concurrently instead of in turns.

The MPS daemon is private: its pipes and logs are in a temporary directory, so that it needs no special rights and
disturbs no other daemon. A helper process (``python -m`` this module) ends it when the process that started it ends,
even if that is killed.
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
"""Where a daemon has its pipes by default."""

PATIENCE = 60.0
"""Seconds allowed for the daemon to start, and again for it to end."""


@contextmanager
def daemon(
    places: Sequence[Mapping[str, str]], report: Callable[[str], None], *, wanted: bool = True
) -> Iterator[dict[str, str]]:
    """Start a private MPS daemon for the slots with these environments; yields the variables that runs need to use it.

    Yields no variables, and starts no daemon, if no two slots share a GPU, if MPS is not installed or a daemon is
    running already, or if the daemon fails to start: the runs then share the GPU without MPS. The runs have to end
    before the block does.
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
    # The runs name GPUs by the numbers that this process sees, so the daemon has to see all of them.
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
    # A new session keeps Ctrl-C away from it.
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
    """Wait until the parent process closes stdin (at the latest by ending), then end the daemon."""
    sys.stdin.read()
    if (failure := _call([tool], os.environ, folder / "said", told="quit\n")) is not None:
        print(f"the MPS daemon in {folder} may be left: {CONTROL} {failure}")
    shutil.rmtree(folder, ignore_errors=True)


def _runs_already() -> bool:
    """Whether the environment names an MPS daemon, or one has its pipes in the default directory."""
    return PIPES in os.environ or (DEFAULT_PIPES / "control").exists()


def _call(command: Sequence[str], environment: Mapping[str, str], said: Path, told: str = "") -> str | None:
    """Run a command with ``told`` as its input, and return what went wrong, or None if it succeeded.

    Its output goes to the file ``said``, since a daemon would keep a pipe open; a new session keeps Ctrl-C away.
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
