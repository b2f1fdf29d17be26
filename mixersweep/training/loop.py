"""One training run, from a run directory to its result.

An epoch is trained, evaluated, checkpointed and only then told: whatever is killed whenever, no epoch is trained
twice and no row is lost. Sums of loss and accuracy stay on the device until the epoch ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.config import Pretrainable
from mixersweep.data import load
from mixersweep.data.batches import DeviceImages, split
from mixersweep.errors import RunDiverged
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.models.timm import start_from
from mixersweep.runs import Hold, RunDirectory, completed, hold
from mixersweep.runs.files import written_whole
from mixersweep.seeds import derive, seed_of
from mixersweep.tracking import start as start_mirror
from mixersweep.training.checkpoint import Checkpoint, load_checkpoint
from mixersweep.training.environment import (
    choose_device,
    describe_environment,
    git_commit,
    keep_freed_memory,
    peak_memory_bytes,
    set_threads,
    versions,
)
from mixersweep.training.optimizer import learning_rate, make_optimizer, pruned
from mixersweep.training.progress import TrainingProgress
from mixersweep.training.signals import StopSignals

EVALUATION_BATCH = 512


def train(directory: RunDirectory, signals: StopSignals, report: Callable[[str], None]) -> Path:
    """Hold the run, train what is left of it, mirror it, and return the path of ``result.json``.

    Raises ``RunHeld``, ``RunStopped`` or ``RunDiverged``; the state of the run says the same.
    """
    mirror = None
    try:
        with hold(directory.path) as held:
            mirror = start_mirror(directory, report)
            return Training(directory, held, signals, report).run()
    finally:
        if mirror is not None:
            mirror.finish()


class Training:
    """The parts of one run, set up from its directory; ``run`` trains it."""

    def __init__(
        self, directory: RunDirectory, held: Hold, signals: StopSignals, report: Callable[[str], None]
    ) -> None:
        self.directory, self.held, self.signals = directory, held, signals
        self.run_ = run = directory.run
        self.git_commit = git_commit()  # of the code that is loaded, whatever becomes of the checkout meanwhile
        self.config = config = run.config
        self.device = device = choose_device(config.device)
        kept = load_checkpoint(directory.checkpoint, run.fingerprint, device)
        before = kept.environment if kept else {}
        keep_freed_memory()
        threads = set_threads(config, before.get("threads"))

        train, test = load(config.data.name, Path(config.data_dir).expanduser())
        chosen, withheld = split(train.labels, config.validation, seed_of(config, "split"))

        def on_device(images: Any) -> DeviceImages:
            return DeviceImages(
                images,
                image_size=config.image_size,
                crop_padding=config.augment.crop_padding,
                flip=config.augment.flip,
                mean=config.data.mean,
                std=config.data.std,
                device=device,
            )

        self.train_images = on_device(train.subset(chosen))
        self.validation_images = on_device(train.subset(withheld))
        self.test_images = on_device(test)

        self.network = build(config, run.architecture).to(device)
        storage = choose_storage(self.network, before.get("storage", getattr(config.model, "storage", "auto")), device)
        self.optimizer = make_optimizer(self.network, config.optim)
        environment = describe_environment(device, threads, storage)
        self.state = kept or Checkpoint(run.fingerprint, {}, {}, environment, _now())
        if kept:
            self.network.load_state_dict(kept.model)
            self.optimizer.load_state_dict(kept.optimizer)
            directory.restore_rows(kept.rows)
            report(f"going on after epoch {len(kept.rows)} of {config.epochs}")
            if {k: v for k, v in before.items() if k != "mixed_environment"} != environment:
                self.state.environment = {**environment, "mixed_environment": True}
                report("the environment differs from the one this run began in: its last digits may differ too")
        elif isinstance(config.model, Pretrainable):
            for note in start_from(self.network, config.model):
                report(f"note: {note}")

    def run(self) -> Path:
        """Train the epochs that are left, evaluate, and write predictions and record."""
        steps_per_epoch = math.ceil(len(self.train_images) / self.config.batch_size)
        rows = self.state.rows
        progress = TrainingProgress(self.config.epochs, steps_per_epoch, len(rows) + 1)
        try:
            for epoch in range(len(rows) + 1, self.config.epochs + 1):
                row = self._epoch(epoch, steps_per_epoch, progress)
                self._check_finite(row)
                rows.append(row)
                self.state.model, self.state.optimizer = self.network.state_dict(), self.optimizer.state_dict()
                self.state.save(self.directory.checkpoint)
                self.directory.append_row(row)
                progress.epoch(row)
        finally:
            progress.close()
        self._predict()
        return self.directory.write_result(completed(self.run_, self._measured()))

    def _epoch(self, epoch: int, steps_per_epoch: int, progress: TrainingProgress) -> dict[str, Any]:
        """Train one epoch and evaluate: its row of metrics."""
        config, network, optimizer = self.config, self.network, self.optimizer
        order_seed = derive(seed_of(config, "order"), epoch)
        augment_seed = derive(seed_of(config, "augmentation"), epoch)
        clip_norm, smoothing = config.optim.clip_norm, config.optim.label_smoothing
        network.train()
        sums = Sums(self.device)
        began, rate = time.monotonic(), 0.0
        batches = self.train_images.batches(config.batch_size, order_seed, augment_seed)
        for step, (images, labels) in enumerate(batches, start=(epoch - 1) * steps_per_epoch):
            rate = learning_rate(config.optim, step, steps_per_epoch, config.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            logits = network(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            loss.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
            sums.add(loss.detach(), logits.detach(), labels)
            progress.step()
            self.signals.check()
            self.held.check()
        train_loss, train_accuracy = sums.means()
        seconds = time.monotonic() - began
        validation_loss, validation_accuracy = self._evaluate(self.validation_images)
        test_loss, test_accuracy = self._evaluate(self.test_images)
        return {
            "epoch": epoch,
            "time": time.time(),
            "learning_rate": rate,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            **pruned(self.optimizer),
            "images_per_second": len(self.train_images) / seconds,
            "seconds": seconds,
        }

    @torch.no_grad()
    def _evaluate(self, images: DeviceImages) -> tuple[float | None, float | None]:
        """Mean loss and accuracy in eval mode, without augmentation; None for no images."""
        self.network.eval()
        sums = Sums(self.device)
        for x, labels in images.batches(EVALUATION_BATCH, None, None):
            logits = self.network(x)
            sums.add(F.cross_entropy(logits, labels), logits, labels)
            self.signals.check()
        return sums.means() if len(images) else (None, None)

    @torch.no_grad()
    def _predict(self) -> None:
        """Write the predicted class (N,) and the probability of the true class (N,) of every test image."""
        self.network.eval()
        predicted, probability, true = [], [], []
        for x, labels in self.test_images.batches(EVALUATION_BATCH, None, None):
            probabilities = self.network(x).softmax(1)
            predicted.append(probabilities.argmax(1))
            probability.append(probabilities.gather(1, labels[:, None]).squeeze(1))
            true.append(labels)
        with written_whole(self.directory.predictions) as file:
            np.savez_compressed(
                file,
                prediction=torch.cat(predicted).cpu().numpy().astype(np.int32),
                probability_of_label=torch.cat(probability).cpu().numpy(),
                label=torch.cat(true).cpu().numpy().astype(np.int32),
            )

    def _check_finite(self, row: dict[str, Any]) -> None:
        for name in ("train_loss", "validation_loss", "test_loss"):
            if row[name] is not None and not math.isfinite(row[name]):
                good = self.state.rows[-1] if self.state.rows else None
                last = f"; the last good epoch is {good['epoch']}" if good else ""
                raise RunDiverged(
                    f"{name} is {row[name]} in epoch {row['epoch']} at learning rate {row['learning_rate']:.3g}{last}"
                )

    def _measured(self) -> dict[str, Any]:
        rows = self.state.rows
        last = rows[-1]
        validated = [row for row in rows if row["validation_accuracy"] is not None]
        best = max(validated, key=lambda row: (row["validation_accuracy"], -row["epoch"]), default=None)
        seconds = sum(row["seconds"] for row in rows)
        losses = ("train_loss", "validation_loss", "test_loss")
        accuracies = ("train_accuracy", "validation_accuracy", "test_accuracy")
        return {
            "epochs": len(rows),
            "best_epoch": best and best["epoch"],
            **{name: last[name] for name in (*losses, *accuracies)},
            "best_validation_test_accuracy": best and best["test_accuracy"],
            "images_per_second": len(rows) * len(self.train_images) / seconds,
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "started": self.state.started,
            "finished": _now(),
            "environment": self.state.environment,
            "versions": versions(),
            "git_commit": self.git_commit,
        }


class Sums:
    """Loss and correct predictions of many batches, kept on the device in float64."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (B, classes), labels (B,)."""
        correct = (logits.argmax(1) == labels).sum()
        self._sums += torch.stack([loss.double() * len(labels), correct.double()])
        self._images += len(labels)

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy; the one place where the host waits for the device."""
        loss, correct = self._sums.tolist()
        return loss / max(1, self._images), correct / max(1, self._images)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
