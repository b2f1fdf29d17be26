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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from mixersweep import config, processor
from mixersweep.errors import INTERRUPTED, RunStopped, UserError
from mixersweep.kinds import Auto, Count, Whole
from mixersweep.runs import RunDirectory
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import GPU_REQUESTED, Capacity, Launcher, StopRequest, mps, python_path
from mixersweep.sweeps.outcome import outcome_line
from mixersweep.sweeps.packs import Pack, count_in_words, pack_jobs
from mixersweep.tracking.job import mirror_of_job, pipe_environment

MEMORY_OF_A_RUN = 1.5e9
"""Bytes assumed per run when the number of concurrent runs is chosen; torch alone takes a third of them."""

POLL_SECONDS = 0.25
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

    def with_environment(self, environment: Mapping[str, str]) -> Slot:
        """Return this slot with more environment variables."""
        return Slot(self.cores, {**self.environment, **environment})


def launcher(values: Mapping[str, Any], folder: Path) -> Local:
    """Build the local launcher; raises ``UserError`` for invalid settings."""
    return Local(config.settings(LocalSettings, values, "hydra.launcher."), folder)


def capacity(values: Mapping[str, Any], run_config: config.Config, jobs: int) -> Capacity:
    """Return the number of slots and their cores for ``jobs`` runs; raises ``UserError`` for invalid settings."""
    settings = config.settings(LocalSettings, values, "hydra.launcher.")
    some = slots(settings, run_config, jobs)
    return Capacity(bool(some[0].environment), settings.runs_per_gpu, len(some), len(some[0].cores))


class Local(Launcher):
    """The launcher that runs everything on this machine (``hydra/launcher=local``); ``folder`` is the sweep's."""

    def __init__(self, settings: LocalSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Execute the runs, as many packs at once as there are slots, for which the first run stands for all."""
        settings = self._settings
        free = slots(settings, RunDirectory.open(jobs[0]).run.config, len(jobs))
        on_gpu, sharing = bool(free[0].environment), settings.runs_per_gpu
        packs = pack_jobs(jobs, settings.pack, on_gpu=on_gpu, at_once=len(free), packs_per_gpu=sharing)
        taken = free[: len(packs)]
        report(_describe_start(taken, packs))
        with (
            mirror_of_job(jobs, self._folder, report) as mirror,
            mps.daemon([slot.environment for slot in taken], report, is_wanted=settings.mps) as shared,
        ):
            self._execute(packs, [slot.with_environment(shared) for slot in taken], mirror, stop, report)
        return True

    def _execute(
        self,
        packs: Sequence[Pack],
        slots: Sequence[Slot],
        mirror: int | None,
        stop: StopRequest,
        report: Callable[[str], None],
    ) -> None:
        total = sum(map(len, packs))
        waiting, left = deque(packs), total
        while waiting:  # once, unless a supervisor was killed
            supervisor = Supervisor(self._folder.name, self._settings.warm, mirror)

            def on_end(pack: Pack, code: int | None, supervisor: Supervisor = supervisor) -> None:
                nonlocal left
                for run_dir in pack:
                    left -= 1
                    queue.fail_unstarted(run_dir, code)
                    report(f"{outcome_line(run_dir)}  {supervisor.seconds(pack):.1f} s, {left} of {total} left")

            try:
                supervisor.execute(waiting, slots, stop, on_end)
            finally:
                supervisor.shut_down()


class Supervisor:
    """The launching process's handle on the supervisor process, which starts runs and waits for them.

    ``sweep`` names the process in ``ps``; ``mirror`` is the pipe to the mirror of the job, which the runs inherit.
    """

    def __init__(self, sweep: str, warm: bool, mirror: int | None = None) -> None:
        command = [sys.executable, "-m", "mixersweep.sweeps.launchers.supervisor", sweep, *(["--warm"] if warm else [])]
        environment = {"PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}  # never import from the working directory
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            env={**os.environ, **pipe_environment(mirror), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if mirror is None else (mirror,),
        )
        self._running: dict[Pack, Slot] = {}
        self._begin_times: dict[Pack, float] = {}
        self._pids: dict[Pack, int] = {}
        self._unread = b""
        self._is_gone = False

    def execute(
        self, waiting: deque[Pack], slots: Sequence[Slot], stop: StopRequest, on_end: Callable[[Pack, int | None], None]
    ) -> None:
        """Start packs from ``waiting`` in free slots until none is left, or until the supervisor is killed.

        ``on_end`` is called with each pack that ends and its exit code, None where that is unknown. When ``stop``
        raises, the runs are asked to stop and waited for, and the same exception is raised.
        """
        free_slots, stop_error = list(reversed(slots)), None
        while self._running or (waiting and stop_error is None and not self._is_gone):
            while waiting and free_slots and stop_error is None and not self._is_gone:
                self._start(waiting.popleft(), free_slots.pop())
            for pack, code in self._wait_for_ends():
                free_slots.append(self._running.pop(pack))
                on_end(pack, code)
            if stop_error is None:
                try:
                    stop.check()
                except RunStopped as request:
                    stop_error = request
                    self._send({"signal": signal.SIGINT if request.exit_code == INTERRUPTED else signal.SIGTERM})
        if stop_error is not None:
            raise stop_error

    def seconds(self, pack: Pack) -> float:
        """Return the seconds since a pack began."""
        return time.monotonic() - self._begin_times.get(pack, time.monotonic())

    def shut_down(self) -> None:
        """End the supervisor and kill the runs that are still going."""
        self._send({"signal": signal.SIGKILL})
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
        self._send({"pack": list(map(str, pack)), "cores": slot.cores, "environment": slot.environment})

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a supervisor that is gone is seen by the end of its output
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def _wait_for_ends(self) -> list[tuple[Pack, int | None]]:
        """Wait up to ``POLL_SECONDS`` seconds and return the packs that ended, each with its exit code."""
        ended: list[tuple[Pack, int | None]] = []
        for message in self._messages():
            pack = tuple(map(Path, message["pack"]))
            if "pid" in message:
                self._pids[pack], self._begin_times[pack] = message["pid"], time.monotonic()
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
            if not selector.select(POLL_SECONDS):
                return []
        read = os.read(self._output.fileno(), 65536)
        self._is_gone = not read
        *lines, self._unread = (self._unread + read).split(b"\n")
        return [json.loads(line) for line in lines]


def slots(settings: LocalSettings, run_config: config.Config, jobs: int) -> list[Slot]:
    """Divide this machine's cores and GPUs into slots for ``jobs`` runs like that of ``run_config``."""
    cores = processor.cores()
    threads = run_config.threads if isinstance(run_config.threads, int) else 1
    gpus = _choose_gpus(settings.gpus, run_config.device)
    marker = {} if settings.gpus == "auto" else {GPU_REQUESTED: "asked"}
    environments = [{"CUDA_VISIBLE_DEVICES": gpu, **marker} for _ in range(settings.runs_per_gpu) for gpu in gpus]
    if gpus:
        count = len(environments) if settings.jobs == "auto" else min(settings.jobs, len(environments))
    elif settings.jobs == "auto":
        memory = int(psutil.virtual_memory().available / MEMORY_OF_A_RUN)
        count = max(1, min(len(cores) // threads, memory))
    else:
        count = settings.jobs
    count = min(count, jobs)
    share = min(len(cores), max(threads, len(cores) // count))
    allotments = processor.allot(cores, share, count)
    return [Slot(tuple(own), environments[i] if gpus else {}) for i, own in enumerate(allotments)]


def _choose_gpus(requested: int | str, device: str) -> list[str]:
    """Return the GPUs to use, as ``CUDA_VISIBLE_DEVICES`` names them; raises ``UserError`` if there are too few."""
    if device == "cpu" or requested == 0:
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
    wanted = requested if isinstance(requested, int) else len(found)
    if wanted > len(found):
        raise UserError(f"hydra.launcher.gpus={requested}: there are {len(found)} visible GPUs here")
    return found[:wanted]


def visible_gpus() -> list[str]:
    """Return the GPUs in ``CUDA_VISIBLE_DEVICES``; like CUDA, stop at the first invalid entry (NoDevFiles, -1)."""
    named = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return list(itertools.takewhile(re.compile(r"\d+$|(GPU|MIG)-[\w/-]+$").match, named))


def will_use_gpu(device: str, gpus: int | str) -> bool:
    """Whether a run with this ``device`` will use a GPU of this machine, as far as is known without importing torch."""
    return device.startswith("cuda") or bool(_choose_gpus(gpus, device))


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


def _describe_start(slots: list[Slot], packs: Sequence[Pack]) -> str:
    concurrency = "at once" if len(slots) > 1 else "at a time"
    gpus = len({slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots if slot.environment})
    cores = len(slots[0].cores)
    where = f"on {gpus} GPU{'s' * (gpus > 1)}" if gpus else f"with {cores} core{'s' * (cores > 1)} each"
    return f"local: {count_in_words(packs)}, {len(slots)} {concurrency} {where}"
