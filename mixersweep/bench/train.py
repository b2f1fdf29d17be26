"""Training as a whole: the program's own loop against a usual one, against its model alone, and its start.

The loop is that of a run with everything in it: batches, steps, metrics, heed of signals and of the run's holder, looks
for what is not finite, checkpoint, row and progress. Model time is forward, backward and update of the same batches;
what the loop takes beyond it is overhead. Evaluation is neither: there are no validation images, and so few for testing
that they hardly count. Start-up is from the command, a process of its own, to the checkpoint after its first step, on a
data set of CIFAR-10's size; its reference is the import of torch.
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
    """An epoch of a run over ``images`` images, from a data set on disk as far as to its row."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device, in the first epoch."""
        epochs = self._epochs(device)

        def epoch() -> None:
            with redirect_stderr(io.StringIO()):  # the progress
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
    """The same epoch as a script has it: a DataLoader with PIL transforms, and metrics summed up on the host."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        run = the_run()
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
    """Forward, backward and update of the batches of such an epoch, which are there already."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        run = the_run()
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
    """A command of its own, until there is the checkpoint after its first step."""

    images: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Ready for the first start, which puts the data in place."""
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
    """A process that does nothing but import torch."""
    del device
    return lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)


def train_cases(everything: bool) -> Iterator[Case]:
    """The loop against a DataLoader's and against its model alone, and start-up; ``everything`` takes CIFAR's epoch."""
    images = 50_000 if everything else 25_600
    yield Case("train_vs_dataloader_loop", _sizes(images), Ours(images), Theirs(images))
    yield Case("train_overhead", _sizes(images), Ours(images), ModelAlone(images))
    yield Case("start_up", _sizes(50_000), FirstStep(50_000), import_torch)


def the_run() -> Run:
    """The run whose model is trained, without a data set of its own."""
    return solve(config_of([*MODEL]))


def write_data(folder: Path, train: int, test: int) -> list[str]:
    """A data set of CIFAR-10's kind and these numbers of images, as ``data prepare`` leaves it, and what chooses it."""
    arrays: Arrays = {}
    for part, count in (("train", train), ("test", test)):
        images = some_images(count)
        arrays |= {f"{part}_images": images.images, f"{part}_labels": images.labels.astype("uint8")}
    (folder / "scratch").mkdir()
    write(folder / "cifar10.npz", arrays, folder / "scratch")
    return [f"data_dir={folder}", f"data.train_images={train}", f"data.test_images={test}"]


def _sizes(images: int) -> dict[str, object]:
    run = the_run()
    a = run.architecture
    sizes = {"tokens": a.tokens, "channels": a.channels, "batch_size": BATCH, "images": images}
    return {"model": run.config.model.name, "width": a.width, "connections": a.connections, **sizes}
