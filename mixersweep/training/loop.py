"""One training run, from a run directory to its result.

An epoch is trained, evaluated, checkpointed and only then told. What is random in a step is a function of seeds, epoch
and step, so a run that is stopped anywhere goes on from its last checkpoint as if nothing had happened: no epoch is
told twice and no row is lost. Sums of loss and accuracy stay on the device until an epoch ends.
"""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixersweep.config import Pretrainable
from mixersweep.data.batches import Batches
from mixersweep.data.splits import open_splits
from mixersweep.data.stream import choose_workers
from mixersweep.errors import FAILED, RunDiverged, RunFailed, RunStopped
from mixersweep.models.timm import start_from
from mixersweep.runs import Hold, RunDirectory, completed, hold
from mixersweep.runs.files import written_whole
from mixersweep.seeds import derive, seed_of
from mixersweep.tracking import start as start_mirror
from mixersweep.training.checkpoint import Checkpoint, load_checkpoint, previous
from mixersweep.training.environment import (
    choose_device,
    describe_environment,
    git_commit,
    keep_freed_memory,
    peak_memory_bytes,
    set_threads,
    set_up_torch,
    versions,
)
from mixersweep.training.faults import FirstBadStep, first_bad_layer, is_out_of_memory, what_fits
from mixersweep.training.learner import Learner
from mixersweep.training.optimizer import pruned
from mixersweep.training.parallel import World
from mixersweep.training.progress import TrainingProgress
from mixersweep.training.schedule import learning_rate
from mixersweep.training.signals import StopSignals

EVALUATION_BATCH = 512
LOOK_EVERY = 50
"""Steps between two looks at whether the loss is finite, which wait for the device."""

ASK_EVERY = 10
"""Steps between two times that several processes agree on going on."""

Report = Callable[[str], None]


def train(directory: RunDirectory, signals: StopSignals, report: Report, world: World | None = None) -> Path:
    """Hold the run, train what is left of it, mirror it, and return the path of ``result.json``.

    Of several processes the first holds and writes. Raises ``RunHeld``, ``RunCancelled``, ``RunStopped``,
    ``RunDiverged`` or ``RunFailed``; the state of the run says the same.
    """
    world = world or World()
    if not world.first:
        return Training(directory, None, signals, report, world).run()
    mirror = None
    try:
        with hold(directory.path) as held:
            mirror = start_mirror(directory, report)
            return Training(directory, held, signals, report, world).run()
    finally:
        if mirror is not None:
            mirror.finish()


class Training:
    """The parts of one run, set up from its directory; ``run`` trains it."""

    def __init__(
        self, directory: RunDirectory, held: Hold | None, signals: StopSignals, report: Report, world: World
    ) -> None:
        self.directory, self.held, self.signals, self.report, self.world = directory, held, signals, report, world
        self.run_ = run = directory.run
        self.git_commit = git_commit()  # of the code that is loaded, whatever becomes of the checkout meanwhile
        self.config = config = run.config
        self.device = device = choose_device(world.device(config.device))
        kept = load_checkpoint(directory.checkpoint, run.fingerprint, device, report)
        before = kept.environment if kept else {}
        keep_freed_memory()
        threads = set_threads(config, before.get("threads"))
        set_up_torch(config, device, report)
        self.splits = open_splits(config, device, workers=choose_workers(config.workers, world.local_size))
        self.steps = math.ceil(len(self.splits.train) / config.batch_size)

        storage = before.get("storage", getattr(config.model, "storage", "auto"))
        self.learner = Learner(run, device, world, storage)
        environment = describe_environment(device, threads, self.learner.storage, config, world.size)
        self.state = kept or Checkpoint(run.fingerprint, environment, _now())
        self.sums = Sums(device, self.state.sums if world.first else None)
        self.bad = FirstBadStep(device)
        self.began = self.saved = time.monotonic()
        if kept:
            self._go_on(kept, environment)
        elif isinstance(config.model, Pretrainable):
            for note in start_from(self.learner.network, config.model):
                report(f"note: {note}")

    def run(self) -> Path:
        """Train what is left, evaluate, and write predictions and record."""
        rows, epochs = self.state.rows, self.config.epochs
        progress = TrainingProgress(epochs, self.steps, len(rows) + 1, self.state.step, shown=self.world.first)
        try:
            for epoch in range(len(rows) + 1, epochs + 1):
                row = self._epoch(epoch, progress)
                self._check_finite(row)
                self.state.rows.append(row)
                self.state.step, self.state.seconds = 0, 0.0
                self.sums = Sums(self.device)
                if epoch % self.config.checkpoint.every == 0 or epoch == epochs or self._is_kept(epoch):
                    self._save()
                if self.world.first:
                    self.directory.append_row(row)
                    progress.epoch(row)
            self._predict()
            return self._finish()
        except RunStopped:
            self._save()
            raise
        except Exception as error:
            explained = self._explained(error)
            if explained is error:
                raise
            raise explained from error
        finally:
            progress.close()
            self.splits.close()

    def _epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, Any]:
        """Train what is left of an epoch and evaluate: its row of metrics."""
        config, learner, world, state = self.config, self.learner, self.world, self.state
        order_seed = derive(seed_of(config, "order"), epoch)
        augment_seed = derive(seed_of(config, "augmentation"), epoch)
        learner.train()
        self.began = time.monotonic() - state.seconds
        images_in_epoch, rate = len(self.splits.train), self._rate(epoch, self.steps - 1)
        batches = self.splits.train.batches(
            config.batch_size, order_seed, augment_seed, first_step=state.step, rank=world.rank, world_size=world.size
        )
        for step, (images, labels) in enumerate(batches, start=state.step):
            count = min(config.batch_size, images_in_epoch - step * config.batch_size)
            rate = self._rate(epoch, step)
            loss, logits = learner.step(
                images,
                labels,
                count=count,
                rate=rate,
                step=(epoch - 1) * self.steps + step,
                seed=derive(augment_seed, "step", step),
            )
            self.sums.add(loss, logits, labels)
            self.bad.see(step, loss)
            state.step = step + 1
            progress.step()
            self._between_steps(epoch)
        self._look(epoch)
        state.seconds = time.monotonic() - self.began
        train_loss, train_accuracy = self.sums.means(world)
        row: dict[str, Any] = {"epoch": epoch, "time": time.time(), "learning_rate": rate}
        row |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
        for averaged in (False, True) if learner.average is not None else (False,):
            prefix = "ema_" if averaged else ""
            for name, split in (("validation", self.splits.validation), ("test", self.splits.test)):
                mean_loss, accuracy = self._evaluate(split, averaged=averaged)
                row |= {f"{prefix}{name}_loss": mean_loss, f"{prefix}{name}_accuracy": accuracy}
        return {
            **row,
            **pruned(learner.optimizer),
            "images_per_second": images_in_epoch / state.seconds,
            "seconds": state.seconds,
        }

    def _rate(self, epoch: int, step: int) -> float:
        return learning_rate(self.config.optim, (epoch - 1) * self.steps + step, self.steps, self.config.epochs)

    def _between_steps(self, epoch: int | None = None) -> None:
        """Act on signals and on a hold that is lost, save where it is time, and see that the loss is still finite."""
        step, world = self.state.step, self.world
        if epoch is not None and step % LOOK_EVERY == 0:
            self._look(epoch)
        if world.size == 1:
            self._check_hold()
            self.signals.check()
            if self._is_time():
                self._save()
        elif step % ASK_EVERY == 0:
            lost: Exception | None = None
            try:
                self._check_hold()
            except Exception as error:
                lost = error
            wanted = world.most(_LOST if lost else self.signals.received or (_SAVE if self._is_time() else 0))
            if lost:
                raise lost
            if wanted == _SAVE:
                self._save()
            elif wanted == _LOST:
                raise RunStopped("the first process has lost the run", FAILED)
            elif wanted:
                self.signals.stop(wanted)

    def _check_hold(self) -> None:
        if self.held is not None:
            self.held.check()

    def _is_time(self) -> bool:
        minutes = self.config.checkpoint.minutes
        return self.world.first and minutes is not None and time.monotonic() - self.saved > 60 * minutes

    def _is_kept(self, epoch: int) -> bool:
        return epoch in (self.config.checkpoint.keep or [])

    def _save(self) -> None:
        """Write a checkpoint of what is trained so far, inside an epoch too."""
        state, world = self.state, self.world
        state.sums = world.total(self.sums.values.clone()) if state.step else None
        if world.size > 1 and state.step:  # from here on the first process counts for all
            self.sums.values = state.sums.clone() if world.first and state.sums is not None else self.sums.values * 0
        if not world.first:
            return
        if 0 < state.step < self.steps:
            state.seconds = time.monotonic() - self.began
        self.learner.save_to(state)
        path = self.directory.checkpoint
        state.save(path)
        epoch = len(state.rows)
        if state.step == 0 and self._is_kept(epoch):
            shutil.copyfile(path, path.with_name(f".{path.name}.tmp"))
            path.with_name(f".{path.name}.tmp").replace(path.with_name(f"checkpoint-{epoch:04d}.pt"))
        self.saved = time.monotonic()

    def _go_on(self, kept: Checkpoint, environment: dict[str, Any]) -> None:
        self.learner.load_from(kept)
        if self.world.first:
            self.directory.restore_rows(kept.rows)
        inside = f" and {kept.step} of {self.steps} steps" if kept.step else ""
        self.report(f"going on after epoch {len(kept.rows)} of {self.config.epochs}{inside}")
        if {k: v for k, v in kept.environment.items() if k != "mixed_environment"} != environment:
            self.state.environment = {**environment, "mixed_environment": True}
            self.report("the environment differs from the one this run began in: its last digits may differ too")

    def _evaluate(self, images: Batches, *, averaged: bool) -> tuple[float | None, float | None]:
        """Mean loss and accuracy in eval mode, without augmentation; None for no images."""
        sums, world = Sums(self.device), self.world
        for x, labels in images.batches(EVALUATION_BATCH, None, None, rank=world.rank, world_size=world.size):
            if len(labels):
                logits = self.learner.logits(x, averaged=averaged)
                sums.add(F.cross_entropy(logits, labels), logits, labels)
            if world.size == 1:
                self._check_hold()
                self.signals.check()
        return sums.means(world) if len(images) else (None, None)

    def _predict(self) -> None:
        """Write the predicted class (N,) and the probability of the true class (N,) of every test image."""
        world, images = self.world, self.splits.test
        predicted, true = torch.zeros(2, len(images), dtype=torch.int32, device=self.device)
        probability = torch.zeros(len(images), device=self.device)
        share = images.batches(EVALUATION_BATCH, None, None, rank=world.rank, world_size=world.size)
        for first, (x, labels) in zip(range(0, len(images), EVALUATION_BATCH), share, strict=True):
            if len(labels):
                mine = torch.arange(first + world.rank, first + EVALUATION_BATCH, world.size)[: len(labels)]
                probabilities = self.learner.logits(x).softmax(1)
                predicted[mine] = probabilities.argmax(1).int()
                probability[mine] = probabilities.gather(1, labels[:, None]).squeeze(1)
                true[mine] = labels.int()
        for values in (predicted, probability, true):
            world.total(values)  # each image is one process's, and zero in the others
        if world.first:
            with written_whole(self.directory.predictions) as file:
                arrays = {"prediction": predicted, "probability_of_label": probability, "label": true}
                np.savez_compressed(file, **{name: values.cpu().numpy() for name, values in arrays.items()})

    def _look(self, epoch: int) -> None:
        """Raise ``RunDiverged``, with the step and the layer where it began, if a loss was not finite."""
        step = self.bad()
        if self.world.most(0 if step is None else 1) == 0:
            return
        where = f"step {step + 1} of epoch {epoch}" if step is not None else f"epoch {epoch}"
        rate = self._rate(epoch, step or 0)
        layer = None if step is None else self._offender(epoch, step)
        raise RunDiverged(
            f"the loss is not finite in {where}, at learning rate {rate:.3g}"
            + (f": {layer}" if layer else "")
            + self._last_good()
        )

    def _offender(self, epoch: int, bad: int) -> str | None:
        """Train again from the last checkpoint up to the bad step, and find the layer where it begins."""
        if self.world.size > 1 or len(self.state.rows) != epoch - 1:
            return None
        kept = load_checkpoint(self.directory.checkpoint, self.run_.fingerprint, self.device)
        if kept is not None and len(kept.rows) != epoch - 1:
            return None
        config = self.config
        self.learner = learner = Learner(self.run_, self.device, self.world, self.learner.storage)
        if kept is not None:
            learner.load_from(kept)
        elif isinstance(config.model, Pretrainable):
            start_from(learner.network, config.model)
        learner.train()
        first = kept.step if kept else 0
        augment_seed = derive(seed_of(config, "augmentation"), epoch)
        order_seed = derive(seed_of(config, "order"), epoch)
        batches = self.splits.train.batches(config.batch_size, order_seed, augment_seed, first_step=first)
        for step, (images, labels) in enumerate(batches, start=first):
            if step == bad:
                return first_bad_layer(learner.network, lambda x=images, y=labels: learner.loss(x, y))  # type: ignore[misc]
            learner.step(
                images,
                labels,
                count=len(images),
                rate=self._rate(epoch, step),
                step=(epoch - 1) * self.steps + step,
                seed=derive(augment_seed, "step", step),
            )
            for name, parameter in learner.network.named_parameters():
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    return f"the gradient of {name} is not finite in step {step + 1}"
        return None

    def _check_finite(self, row: dict[str, Any]) -> None:
        for name in ("train_loss", "validation_loss", "test_loss"):
            if row[name] is not None and not math.isfinite(row[name]):
                raise RunDiverged(
                    f"{name} is {row[name]} in epoch {row['epoch']} at learning rate {row['learning_rate']:.3g}"
                    + self._last_good()
                )

    def _last_good(self) -> str:
        if not self.state.rows:
            return ""
        row = self.state.rows[-1]
        return (
            f"; the last good epoch is {row['epoch']} (train loss {row['train_loss']:.4g}, "
            f"test accuracy {row['test_accuracy']:.4g})"
        )

    def _explained(self, error: Exception) -> Exception:
        """An error with what can be done about it, where that is known."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            epoch = len(self.state.rows)
            return RunFailed(
                f"{self.directory.path}: {error.strerror}; the last checkpoint is whole: make room, and the same "
                f"command goes on (epoch {epoch} of {self.config.epochs} was done)"
            )
        if not is_out_of_memory(error):
            return error
        config, a = self.config, self.run_.architecture
        size = math.ceil(config.batch_size / config.accumulation / self.world.size)
        text = (
            f"out of memory on {self.device} with {size} images at once (batch_size={config.batch_size}, "
            f"accumulation={config.accumulation}; width {a.width}, depth {a.depth}, {a.parameters:,} parameters)"
        )
        fitting = what_fits(size, self._try) if self.world.size == 1 else None
        if fitting is None:
            return RunFailed(f"{text}; try gradient_checkpointing=true, or a narrower network")
        return RunFailed(
            f"{text}; {fitting} fit: accumulation={math.ceil(config.batch_size / fitting)} computes the same, "
            f"batch_size={fitting} is another experiment"
        )

    def _try(self, size: int) -> None:
        """A forward and backward pass of ``size`` images."""
        self.learner.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        data, config = self.config.data, self.config
        x = torch.zeros(size, data.image_channels, config.image_size, config.image_size, device=self.device)
        self.learner.train()
        self.learner.network(x).sum().backward()

    def _finish(self) -> Path:
        path = self.directory.path / "result.json"
        if self.world.first:
            self.directory.write_result(completed(self.run_, self._measured()))
            previous(self.directory.checkpoint).unlink(missing_ok=True)
        self.world.most(0)  # nobody leaves before the result is there
        return path

    def _measured(self) -> dict[str, Any]:
        rows = self.state.rows
        last = rows[-1]
        validated = [row for row in rows if row["validation_accuracy"] is not None]
        best = max(validated, key=lambda row: (row["validation_accuracy"], -row["epoch"]), default=None)
        seconds = sum(row["seconds"] for row in rows)
        names = [f"{split}_{kind}" for split in ("train", "validation", "test") for kind in ("loss", "accuracy")]
        averaged = [f"ema_{name}" for name in names[2:]]
        return {
            "epochs": len(rows),
            "best_epoch": best and best["epoch"],
            **{name: last[name] for name in names},
            "best_validation_test_accuracy": best and best["test_accuracy"],
            **{name: last.get(name) for name in averaged},
            "images_per_second": len(rows) * len(self.splits.train) / seconds,
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "started": self.state.started,
            "finished": _now(),
            "environment": self.state.environment,
            "versions": versions(),
            "git_commit": self.git_commit,
        }


_SAVE, _LOST = 500, 1000
"""What processes tell each other beside the number of a signal."""


class Sums:
    """Loss, correct predictions and images of many batches, kept on the device in float64: ``values`` (3,)."""

    def __init__(self, device: torch.device, values: Tensor | None = None) -> None:
        self.values = torch.zeros(3, dtype=torch.float64, device=device) if values is None else values

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (B, classes), labels (B,)."""
        correct = (logits.argmax(1) == labels).sum()
        count = torch.full((), len(labels), dtype=torch.float64, device=self.values.device)
        self.values = self.values + torch.stack([loss.double() * len(labels), correct.double(), count])

    def means(self, world: World | None = None) -> tuple[float, float]:
        """Mean loss and accuracy over all processes; the one place where the host waits for the device."""
        values = self.values.clone() if world is None else world.total(self.values.clone())
        loss, correct, images = values.tolist()
        return loss / max(1, images), correct / max(1, images)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
