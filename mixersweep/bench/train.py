"""Benchmarks of training as a whole: mixersweep's loop against a usual one and against its model alone, and start-up.

The loop is that of a complete run: batches, steps, metrics, polling for signals and for the run's lock, checks for
values that are not finite, checkpoint, metrics row and progress. Model time is forward, backward and update on the same
batches; whatever the loop takes beyond it is overhead. Evaluation hardly counts: there are no validation images and few
test images. Start-up is the time from launching the command to the checkpoint after its first step, on a data set of
CIFAR-10's size; its reference is the import of torch.
"""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F  # noqa: N812

from mixersweep.bench.harness import Case
from mixersweep.bench.loader import BATCH, dataloader, some_images
from mixersweep.compose import config_of
from mixersweep.config.schema import SGD
from mixersweep.data.source import Arrays, write
from mixersweep.data.splits import batches_of
from mixersweep.models import build
from mixersweep.runs import Run, RunDirectory, hold, solve
from mixersweep.training.loop import Training
from mixersweep.training.member import Member
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.parallel import World
from mixersweep.training.signals import StopSignals

MODEL = ("data=cifar10", "model=s_mixer", "tokens=32", "channels=32", f"batch_size={BATCH}")
TEST_IMAGES = 128


@dataclass(frozen=True)
class Ours:
    """An epoch of a run over ``images`` images, from a data set on disk to the epoch's metrics row."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device, during the first epoch."""
        epochs = self._epochs(device)

        def epoch() -> None:
            with redirect_stderr(io.StringIO()):  # progress
                next(epochs)

        return epoch

    def _epochs(self, device: torch.device) -> Iterator[object]:
        with TemporaryDirectory() as folder:
            data = write_data(Path(folder), self.images, TEST_IMAGES)
            run = solve(config_of([*MODEL, *data, "validation=0", "epochs=1000", "tracking=none", f"device={device}"]))
            directory = RunDirectory.create(run, Path(folder))
            with hold(directory.path) as held:
                yield from Training([Member(directory, held)], StopSignals(), lambda _: None, World()).epochs()


@dataclass(frozen=True)
class Theirs:
    """The same epoch in a usual script: a DataLoader with PIL transforms, and metrics summed on the host."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        run = cifar_run()
        loader = dataloader(some_images(self.images), run.config, device)
        network = build(run.config, run.architecture).to(device)
        settings = run.config.optim
        assert isinstance(settings, SGD)
        optimizer = torch.optim.SGD(
            network.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000 * len(loader))

        def epoch() -> tuple[float, float]:
            network.train()
            total, correct = 0.0, 0
            for images, labels in loader:
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                optimizer.zero_grad()
                logits = network(images)
                loss = F.cross_entropy(logits, labels)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
            return total / self.images, correct / self.images

        return epoch


@dataclass(frozen=True)
class ModelAlone:
    """Forward, backward and update on the batches of such an epoch, loaded in advance."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        run = cifar_run()
        batches = list(batches_of(run.config, some_images(self.images), device).batches(BATCH, 0, 0))
        network = build(run.config, run.architecture).to(device)
        optimizer = make_optimizer(network, run.config.optim)

        def epoch() -> None:
            network.train()
            for images, labels in batches:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(images), labels).backward()
                optimizer.step()

        return epoch


@dataclass(frozen=True)
class FirstStep:
    """The ``train`` command in a new process, up to the checkpoint after its first step."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Return a function that starts the command; its first call also writes the data set."""
        starts = self._starts(device)
        return lambda: next(starts)

    def _starts(self, device: torch.device) -> Iterator[None]:
        with TemporaryDirectory() as folder:
            data = write_data(Path(folder), self.images, self.images // 5)
            settings = (*MODEL, *data, "tracking=none", "checkpoint.minutes=1e-9", f"device={device}")
            for number in itertools.count():
                runs = Path(folder) / f"runs{number}"
                command = [sys.executable, "-m", "mixersweep", "train", *settings, f"runs_dir={runs}"]
                with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
                    while not any(runs.glob("*/checkpoint.pt")):
                        if process.poll() is not None:
                            raise RuntimeError(process.communicate()[1])
                        time.sleep(0.005)
                    process.kill()
                yield


def import_torch(device: torch.device) -> Callable[[], object]:
    """Return a function that starts a process which only imports torch."""
    del device
    return lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)


def train_cases(everything: bool) -> Iterator[Case]:
    """Yield the comparisons of the loop and of start-up; ``everything`` takes an epoch of CIFAR-10's size."""
    images = 50_000 if everything else 25_600
    yield Case("train_vs_dataloader_loop", _sizes(images), Ours(images), Theirs(images))
    yield Case("train_overhead", _sizes(images), Ours(images), ModelAlone(images))
    yield Case("start_up", _sizes(50_000), FirstStep(50_000), import_torch)


def cifar_run() -> Run:
    """Return the run whose model is trained, on CIFAR-10 itself."""
    return solve(config_of([*MODEL]))


def write_data(folder: Path, train: int, test: int) -> list[str]:
    """Write a data set in the form of CIFAR-10, as ``data prepare`` does; return the overrides that choose it."""
    arrays: Arrays = {}
    for part, count in (("train", train), ("test", test)):
        images = some_images(count)
        arrays |= {f"{part}_images": images.images, f"{part}_labels": images.labels.astype("uint8")}
    (folder / "scratch").mkdir()
    write(folder / "cifar10.npz", arrays, folder / "scratch")
    return [f"data_dir={folder}", f"data.train_images={train}", f"data.test_images={test}"]


def _sizes(images: int) -> dict[str, object]:
    run = cifar_run()
    a = run.architecture
    sizes = {"tokens": a.tokens, "channels": a.channels, "batch_size": BATCH, "images": images}
    return {"model": run.config.model.name, "width": a.width, "connections": a.connections, **sizes}
