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

from mixersweep.sweeps.launchers import python_path

CONTROL = "nvidia-cuda-mps-control"

PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

DEFAULT_PIPES = Path("/tmp/nvidia-mps")
"""Where a daemon has its pipes by default."""

TIMEOUT = 60.0
"""Seconds allowed for the daemon to start, and again for it to end."""


@contextmanager
def daemon(
    environments: Sequence[Mapping[str, str]], report: Callable[[str], None], *, is_wanted: bool = True
) -> Iterator[dict[str, str]]:
    """Start a private MPS daemon for the slots with these environments; yields the variables that runs need to use it.

    Yields no variables, and starts no daemon, if no two slots share a GPU, if MPS is not installed or a daemon is
    running already, or if the daemon fails to start: the runs then share the GPU without MPS. The runs have to end
    before the block does.
    """
    tool = shutil.which(CONTROL)
    gpus = [slot["CUDA_VISIBLE_DEVICES"] for slot in environments if "CUDA_VISIBLE_DEVICES" in slot]
    if not is_wanted or tool is None or len(gpus) == len(set(gpus)) or _is_running():
        yield {}
        return
    folder = Path(tempfile.mkdtemp(prefix="mps-"))
    mps_environment = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
    for path in mps_environment.values():
        Path(path).mkdir()
    # The runs name GPUs by the numbers that this process sees, so the daemon has to see all of them.
    daemon_environment = {**os.environ, **mps_environment}
    daemon_environment.pop("CUDA_VISIBLE_DEVICES", None)
    if (failure := _run_tool([tool, "-d"], daemon_environment, folder / "said")) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        report(f"runs share a GPU without MPS: {CONTROL} {failure}")
        yield {}
        return
    report("runs share a GPU by an MPS daemon of their own")
    command = [sys.executable, "-P", "-m", __name__, tool, str(folder)]
    daemon_environment["PYTHONPATH"] = python_path()
    pipe = subprocess.PIPE
    # A new session keeps Ctrl-C away from it.
    with subprocess.Popen(
        command, env=daemon_environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as helper:
        try:
            yield mps_environment
        finally:
            output, _ = helper.communicate()
            if output:
                report(output.strip())


def _stop_when_parent_ends(tool: str, folder: Path) -> None:
    """Wait until the parent process closes stdin (at the latest by ending), then end the daemon."""
    sys.stdin.read()
    if (failure := _run_tool([tool], os.environ, folder / "said", stdin="quit\n")) is not None:
        print(f"the MPS daemon in {folder} may be left: {CONTROL} {failure}")
    shutil.rmtree(folder, ignore_errors=True)


def _is_running() -> bool:
    """Whether the environment names an MPS daemon, or one has its pipes in the default directory."""
    return PIPES in os.environ or (DEFAULT_PIPES / "control").exists()


def _run_tool(command: Sequence[str], environment: Mapping[str, str], log: Path, stdin: str = "") -> str | None:
    """Run a command with ``stdin`` as its input, and return what went wrong, or None if it succeeded.

    Its output goes to the file ``log``, since a daemon would keep a pipe open; a new session keeps Ctrl-C away.
    """
    try:
        with log.open("w") as file, tempfile.TemporaryFile("w+") as input_file:
            input_file.write(stdin)
            input_file.seek(0)
            done = subprocess.run(
                command,
                env=environment,
                stdin=input_file,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=TIMEOUT,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be used: {error}"
    if done.returncode == 0:
        return None
    lines = log.read_text(errors="replace").split("\n")
    return f"ended with code {done.returncode}" + (f": {lines[0].strip()}" if lines[0].strip() else "")


if __name__ == "__main__":
    _stop_when_parent_ends(sys.argv[1], Path(sys.argv[2]))
