"""Train several runs at once on this machine: each on its share of the cores, or in packs on the visible GPUs.

A supervisor process (``supervisor``) starts the runs. It has its own session, so that the terminal's Ctrl-C reaches
only the launching process, which passes it on once. If the launching process dies, the supervisor asks the runs to
stop; if the supervisor dies, the operating system sends them SIGTERM.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from mixersweep import config, processor
from mixersweep.errors import INTERRUPTED, RunStopped, UserError
from mixersweep.kinds import Auto, Count, Whole
from mixersweep.runs import RunDirectory, read_status
from mixersweep.runs.state import State
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import GIVEN_GPU, LOG, StopRequest, mps
from mixersweep.sweeps.outcome import outcome
from mixersweep.sweeps.packs import Pack, packs, summary
from mixersweep.tracking.job import mirror_of_job, pipe_environment

MEMORY_OF_A_RUN = 1.5e9
"""Bytes assumed per run when the number of concurrent runs is chosen; torch alone takes a third of them."""

LOOK_EVERY = 0.25
"""Seconds between two checks for a signal."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """The settings of ``hydra/launcher=local``; its YAML file explains each."""

    name: Literal["local"]
    jobs: Count | Auto
    gpus: Whole | Auto
    runs_per_gpu: Count
    pack: Count | Auto = "auto"
    mps: bool = True
    warm: bool


@dataclass(frozen=True)
class Slot:
    """The resources for one pack of runs at a time: its CPU cores, and environment variables that select its GPU."""

    cores: tuple[int, ...]
    environment: dict[str, str]

    def plus(self, environment: Mapping[str, str]) -> Slot:
        """Return this slot with more environment variables."""
        return Slot(self.cores, {**self.environment, **environment})


def launcher(values: Mapping[str, Any], folder: Path) -> Local:
    """Build the local launcher; raises ``UserError`` for invalid settings."""
    del folder
    return Local(config.settings(LocalSettings, values, "hydra.launcher."))


class Local:
    """The launcher that runs everything on this machine (``hydra/launcher=local``)."""

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings

    def queued(self, jobs: Sequence[Path]) -> Collection[Path]:
        """Return no runs: the queue of this launcher ends with its process, which ``sweeps.queue`` detects."""
        del jobs
        return ()

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Execute the runs, as many packs at once as there are slots."""
        slots = _slots(self._settings, jobs)
        on_gpu, sharing = bool(slots[0].environment), self._settings.runs_per_gpu
        made = packs(jobs, self._settings.pack, on_gpu=on_gpu, places=len(slots), sharing=sharing)
        slots = slots[: len(made)]
        report(_told(slots, made))
        with (
            mirror_of_job(jobs, report) as mirror,
            mps.daemon([slot.environment for slot in slots], report, wanted=self._settings.mps) as shared,
        ):
            self._execute(made, [slot.plus(shared) for slot in slots], mirror, stop, report)
        return True

    def _execute(
        self,
        made: Sequence[Pack],
        slots: Sequence[Slot],
        mirror: int | None,
        stop: StopRequest,
        report: Callable[[str], None],
    ) -> None:
        total = sum(map(len, made))
        waiting, left = deque(made), total
        while waiting:  # once, unless a supervisor was killed
            supervisor = Supervisor(self._settings.warm, mirror)

            def ended(pack: Pack, code: int | None, supervisor: Supervisor = supervisor) -> None:
                nonlocal left
                for run_dir in pack:
                    left -= 1
                    status = read_status(run_dir)
                    if status.state is State.QUEUED and code:
                        queue.fail(run_dir, f"{_end(code)} before it began; see {LOG}")
                    report(f"{outcome(run_dir)}  {supervisor.seconds(pack):.1f} s, {left} of {total} left")

            try:
                supervisor.execute(waiting, slots, stop, ended)
            finally:
                supervisor.end()


class Supervisor:
    """The launching process's handle on the supervisor process, which starts runs and waits for them.

    ``mirror`` is the pipe to the mirror of the job, which the runs inherit.
    """

    def __init__(self, warm: bool, mirror: int | None = None) -> None:
        command = [sys.executable, "-m", "mixersweep.sweeps.launchers.supervisor", *(["--warm"] if warm else [])]
        package = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            env={
                **os.environ,
                **pipe_environment(mirror),
                "PYTHONPATH": path,
                "PYTHONSAFEPATH": "1",  # never import from the working directory
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if mirror is None else (mirror,),
        )
        self._running: dict[Pack, Slot] = {}
        self._began: dict[Pack, float] = {}
        self._pids: dict[Pack, int] = {}
        self._unread = b""
        self._is_gone = False

    def execute(
        self, waiting: deque[Pack], slots: Sequence[Slot], stop: StopRequest, ended: Callable[[Pack, int | None], None]
    ) -> None:
        """Start packs from ``waiting`` in free slots until none is left, or until the supervisor is killed.

        ``ended`` is called with each pack that ends and its exit code, None where that is unknown. When ``stop``
        raises, the runs are asked to stop and waited for, and the same exception is raised.
        """
        free, stopped = list(reversed(slots)), None
        while self._running or (waiting and stopped is None and not self._is_gone):
            while waiting and free and stopped is None and not self._is_gone:
                self._start(waiting.popleft(), free.pop())
            for pack, code in self._ended():
                free.append(self._running.pop(pack))
                ended(pack, code)
            if stopped is None:
                try:
                    stop.check()
                except RunStopped as request:
                    stopped = request
                    self._tell({"signal": signal.SIGINT if request.exit_code == INTERRUPTED else signal.SIGTERM})
        if stopped is not None:
            raise stopped

    def seconds(self, pack: Pack) -> float:
        """Return the seconds since a pack began."""
        return time.monotonic() - self._began.get(pack, time.monotonic())

    def end(self) -> None:
        """End the supervisor and kill the runs that are still going."""
        self._tell({"signal": signal.SIGKILL})
        with contextlib.suppress(OSError):
            self._input.close()  # which tells it to end
        self._process.wait()
        self._output.close()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _start(self, pack: Pack, slot: Slot) -> None:
        self._running[pack] = slot
        self._tell({"pack": list(map(str, pack)), "cores": slot.cores, "environment": slot.environment})

    def _tell(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a supervisor that is gone is seen by the end of its output
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def _ended(self) -> list[tuple[Pack, int | None]]:
        """Wait up to ``LOOK_EVERY`` seconds and return the packs that ended, each with its exit code."""
        ended: list[tuple[Pack, int | None]] = []
        for message in self._messages():
            pack = tuple(map(Path, message["pack"]))
            if "pid" in message:
                self._pids[pack], self._began[pack] = message["pid"], time.monotonic()
            else:
                ended.append((pack, message["code"]))
        if self._is_gone:  # so the operating system has asked its runs to stop
            for pack in set(self._running) - {pack for pack, _ in ended}:
                with contextlib.suppress(KeyError, psutil.Error):
                    psutil.Process(self._pids[pack]).wait()
                ended.append((pack, None))
        return ended

    def _messages(self) -> list[dict[str, Any]]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            if not selector.select(LOOK_EVERY):
                return []
        read = os.read(self._output.fileno(), 65536)
        self._is_gone = not read
        *lines, self._unread = (self._unread + read).split(b"\n")
        return [json.loads(line) for line in lines]


def _slots(settings: LocalSettings, jobs: Sequence[Path]) -> list[Slot]:
    """Return the slots for these runs; the first run's device and threads stand for those of the whole sweep."""
    return slots(settings, RunDirectory.open(jobs[0]).run.config, len(jobs))


def slots(settings: LocalSettings, run: config.Config, jobs: int) -> list[Slot]:
    """Divide this machine's cores and GPUs into slots for ``jobs`` runs with the device and threads of ``run``."""
    cores = processor.cores()
    threads = run.threads if isinstance(run.threads, int) else 1
    gpus = _gpus(settings.gpus, run.device)
    expected = {} if settings.gpus == "auto" else {GIVEN_GPU: "asked"}
    environments = [{"CUDA_VISIBLE_DEVICES": gpu, **expected} for _ in range(settings.runs_per_gpu) for gpu in gpus]
    if gpus:
        count = len(environments) if settings.jobs == "auto" else min(settings.jobs, len(environments))
    elif settings.jobs == "auto":
        memory = int(psutil.virtual_memory().available / MEMORY_OF_A_RUN)
        count = max(1, min(len(cores) // threads, memory))
    else:
        count = settings.jobs
    count = min(count, jobs)
    share = min(len(cores), max(threads, len(cores) // count))
    chosen = [[cores[(i * share + k) % len(cores)] for k in range(share)] for i in range(count)]
    return [Slot(tuple(own), environments[i] if gpus else {}) for i, own in enumerate(chosen)]


def _gpus(asked: int | str, device: str) -> list[str]:
    """Return the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` names them; raises ``UserError`` if there are too few."""
    if device == "cpu" or asked == 0:
        return []
    if device.startswith("cuda:"):
        raise UserError(
            f"device={device}: the local launcher gives each run its GPU; use device=auto, "
            f"and CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} in the environment to have it use this one alone"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = _all_gpus()
    if visible is not None:
        found = visible_gpus()
    wanted = asked if isinstance(asked, int) else len(found)
    if wanted > len(found):
        raise UserError(f"hydra.launcher.gpus={asked}: there are {len(found)} visible GPUs here")
    return found[:wanted]


def visible_gpus() -> list[str]:
    """Return the GPUs in ``CUDA_VISIBLE_DEVICES``; like CUDA, stop at the first invalid entry (NoDevFiles, -1)."""
    named = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return list(itertools.takewhile(re.compile(r"\d+$|(GPU|MIG)-[\w/-]+$").match, named))


def gives_gpu(device: str, gpus: int | str) -> bool:
    """Whether a run with this ``device`` will use a GPU of this machine, as far as is known without importing torch."""
    return device.startswith("cuda") or bool(_gpus(gpus, device))


def _all_gpus() -> list[str]:
    """Return the indices of the GPUs that ``nvidia-smi`` lists; asking torch would take seconds to import it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _told(slots: list[Slot], made: Sequence[Pack]) -> str:
    places = "at once" if len(slots) > 1 else "at a time"
    gpus = len({slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots if slot.environment})
    cores = len(slots[0].cores)
    where = f"on {gpus} GPU{'s' * (gpus > 1)}" if gpus else f"with {cores} core{'s' * (cores > 1)} each"
    return f"local: {summary(made)}, {len(slots)} {places} {where}"


def _end(code: int) -> str:
    """Describe in words how a process with this exit code ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
