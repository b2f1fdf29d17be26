"""Train runs as tasks of a Ray cluster, or of a Ray instance started on this machine (``hydra/launcher=ray``).

A task requests cores and GPUs, or a fraction of one, and executes its pack of runs in a separate process. When the
command is asked to stop, it cancels the tasks; each then asks its runs to stop and waits for them. If a Ray worker is
killed (all are when the command is), the supervisor of its runs asks them to stop.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt

from mixersweep import config
from mixersweep.errors import RunStopped, UserError
from mixersweep.kinds import Auto, Count, NotNegative
from mixersweep.runs import RunDirectory
from mixersweep.sweeps import queue
from mixersweep.sweeps.launchers import Capacity, Launcher, StopRequest, python_path
from mixersweep.sweeps.launchers.local import visible_gpus, will_use_gpu
from mixersweep.sweeps.launchers.node import execute, slots
from mixersweep.sweeps.outcome import outcome_line
from mixersweep.sweeps.packs import Pack, count_in_words, pack_jobs

POLL_SECONDS = 0.25
"""Seconds between two checks for a signal."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The settings of ``hydra/launcher=ray``; its YAML file explains each."""

    name: Literal["ray"]
    address: str | None
    cpus_per_run: Annotated[float, Gt(0)]
    gpus_per_run: NotNegative | Auto
    pack: Count | Auto = "auto"


def launcher(values: Mapping[str, Any], folder: Path) -> Ray:
    """Build the Ray launcher; raises ``UserError`` for invalid settings."""
    return Ray(_parse_settings(values), folder)


def capacity(values: Mapping[str, Any], run_config: config.Config, jobs: int) -> Capacity:
    """Return whether runs get GPUs, and how many share one; raises ``UserError`` for invalid settings."""
    del jobs
    settings = _parse_settings(values)
    gpus = settings.gpus_per_run
    if gpus == "auto":  # a GPU of this machine, if any; those of a cluster are unknown here
        return Capacity(will_use_gpu(run_config.device, "auto" if settings.address is None else 0))
    return Capacity(gpus > 0, tasks_per_gpu(gpus))


def _parse_settings(values: Mapping[str, Any]) -> RaySettings:
    settings = config.settings(RaySettings, values, "hydra.launcher.")
    for name in ("cpus_per_run", "gpus_per_run"):
        value = getattr(settings, name)
        if value != "auto" and value > 1 and value != int(value):
            raise UserError(f"hydra.launcher.{name}={value:g}: a fraction of one, or a whole number")
    return settings


class Ray(Launcher):
    """The launcher that hands runs to Ray (``hydra/launcher=ray``); ``folder`` is the sweep's."""

    def __init__(self, settings: RaySettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder

    def launch(self, jobs: Sequence[Path], stop: StopRequest, report: Callable[[str], None]) -> bool:
        """Execute the runs, as many packs at once as the cluster has resources for."""
        ray = _connect(self._settings.address)
        try:
            available = ray.cluster_resources()
            resources = self._resources_of_run(RunDirectory.open(jobs[0]).run.config.device, available)
            at_once = min(int(available.get(name, 0) // amount) for name, amount in resources.items() if amount)
            shares = " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount)
            where = f"at {self._settings.address}" if self._settings.address else "on this machine"
            if at_once == 0:
                raise UserError(f"hydra/launcher=ray: a run asks for {shares}, more than Ray has {where}")
            on_gpu, sharing = resources["GPU"] > 0, tasks_per_gpu(resources["GPU"])
            packs = pack_jobs(jobs, self._settings.pack, on_gpu=on_gpu, at_once=at_once, packs_per_gpu=sharing)
            report(f"ray: {count_in_words(packs)} {where}, {min(at_once, len(packs))} at once with {shares} each")
            cores = max(1, int(resources["CPU"]))
            task = ray.remote(_execute).options(num_cpus=resources["CPU"], num_gpus=resources["GPU"], max_retries=0)
            folder = str(self._folder)
            tasks = {task.remote(folder, list(map(str, pack)), i, cores): pack for i, pack in enumerate(packs)}
            self._wait(ray, tasks, stop, report)
        finally:
            ray.shutdown()
        return True

    def _resources_of_run(self, device: str, available: Mapping[str, float]) -> dict[str, float]:
        gpus = self._settings.gpus_per_run
        if gpus == "auto":
            gpus = 1.0 if device != "cpu" and available.get("GPU") else 0.0
        return {"CPU": self._settings.cpus_per_run, "GPU": gpus}

    def _wait(self, ray: Any, tasks: dict[Any, Pack], stop: StopRequest, report: Callable[[str], None]) -> None:
        total, stop_error = sum(map(len, tasks.values())), None
        while tasks:
            for task in ray.wait(list(tasks), timeout=POLL_SECONDS)[0]:
                pack, code = tasks.pop(task), None
                try:
                    code = ray.get(task)
                except ray.exceptions.TaskCancelledError:
                    continue  # it never began
                except ray.exceptions.RayError as error:  # the worker or its node is gone
                    for run_dir in pack:
                        queue.fail(run_dir, f"Ray: {str(error).strip().splitlines()[0]}")
                left = sum(map(len, tasks.values()))
                for run_dir in pack:
                    if stop_error is None:
                        queue.fail_unstarted(run_dir, code)
                    report(f"{outcome_line(run_dir)}  {left} of {total} left")
            if stop_error is None:
                try:
                    stop.check()
                except RunStopped as request:
                    stop_error = request
                    for task in tasks:
                        ray.cancel(task, recursive=False)
        if stop_error is not None:
            raise stop_error


def tasks_per_gpu(gpus_per_run: float) -> int:
    """Return the number of tasks that share one GPU."""
    return int(1 / gpus_per_run) if 0 < gpus_per_run < 1 else 1


def _execute(folder: str, run_dirs: list[str], index: int, cores: int) -> int | None:
    """Execute one pack of runs in a Ray task, and return the exit code of its process."""
    from mixersweep.training.signals import StopSignals

    before = _signal_handlers()
    stop = StopSignals().install()  # Ray cancels a task by sending it SIGINT
    try:
        pack = tuple(map(Path, run_dirs))
        return execute(Path(folder), [pack], slots(1, cores, visible_gpus()[:1], index), stop, print).get(pack[0])
    except RunStopped as stopped:
        return stopped.exit_code
    finally:
        _restore_handlers(before)


def _signal_handlers() -> dict[int, Any]:
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    return {number: signal.getsignal(number) for number in numbers}


def _restore_handlers(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # one that Python did not install
            signal.signal(number, handler)


def _connect(address: str | None) -> Any:
    """Import Ray and connect to ``address``, or start it here if None; raises ``UserError`` where that fails."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError("hydra/launcher=ray: needs Ray; pip install 'mixersweep[ray]'") from None
    environment = {"env_vars": {"PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}}
    handlers = _signal_handlers()
    own_options = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            configure_logging=False,
            runtime_env=environment,
            **own_options,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"hydra.launcher.address={address}: {' '.join(str(error).split())[:300]}") from None
    finally:
        _restore_handlers(handlers)  # Ray installs its own SIGTERM handler
    return ray
