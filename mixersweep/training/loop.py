"""One training run, from a run directory to its result.

An epoch is trained, evaluated, checkpointed and only then told. What is random in a step is a function of seeds, epoch
and step (``steps``), so a run that is stopped anywhere goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixersweep.config import Pretrainable
from mixersweep.data.splits import open_splits
from mixersweep.data.stream import choose_workers
from mixersweep.errors import RunFailed, RunHeld, RunStopped
from mixersweep.layers.nonzeros import why_not_own
from mixersweep.models.timm import start_from
from mixersweep.runs import Hold, RunDirectory, completed, hold
from mixersweep.runs.files import written_whole
from mixersweep.tracking import start as start_mirror
from mixersweep.training.checkpoint import Checkpoint, load_checkpoint, previous, remove_leftovers
from mixersweep.training.divergence import diverged, find_in_evaluation, find_offence
from mixersweep.training.environment import (
    choose_device,
    describe_environment,
    git_commit,
    keep_freed_memory,
    set_threads,
    set_up_torch,
)
from mixersweep.training.evaluation import Sums, evaluate, predict
from mixersweep.training.faults import explained
from mixersweep.training.learner import Learner
from mixersweep.training.optimizer import pruned
from mixersweep.training.outcome import now, outcome
from mixersweep.training.parallel import World
from mixersweep.training.probes import Probes
from mixersweep.training.progress import TrainingProgress
from mixersweep.training.readout import at_start
from mixersweep.training.signals import StopSignals
from mixersweep.training.steps import Steps

LOOK_EVERY = 50
"""Steps between two looks at whether all is finite, which wait for the device."""

ASK_EVERY = 10
"""Batches between two times that several processes agree on going on."""

Report = Callable[[str], None]


def train(directory: RunDirectory, signals: StopSignals, report: Report, world: World | None = None) -> Path:
    """Hold the run, train what is left of it, mirror it, and return the path of ``result.json``.

    Of several processes the first holds and writes. Raises ``RunHeld``, ``RunCancelled``, ``RunStopped``,
    ``RunDiverged`` or ``RunFailed``; the state of the run says the same.
    """
    world = world or World()
    if not world.first:
        if world.most(0):
            raise RunHeld("the first process does not hold the run")
        return _train(directory, None, signals, report, world)
    mirror, told = None, False
    try:
        with hold(directory.path) as held:
            told = not world.most(0)
            mirror = start_mirror(directory, report)
            return _train(directory, held, signals, report, world)
    finally:
        if not told:
            world.most(1)
        if mirror is not None:
            mirror.finish()


def _train(directory: RunDirectory, held: Hold | None, signals: StopSignals, report: Report, world: World) -> Path:
    training: Training | None = None
    try:
        training = Training(directory, held, signals, report, world)
        return training.run()
    except Exception as error:
        known = explained(error, directory, world, getattr(training, "learner", None))
        if known is error:
            raise
        raise known from error


class Training:
    """The parts of one run, set up from its directory; ``run`` trains it."""

    def __init__(
        self,
        directory: RunDirectory,
        held: Hold | None,
        signals: StopSignals,
        report: Report,
        world: World | None = None,
    ) -> None:
        self.directory, self.held, self.signals, self.report = directory, held, signals, report
        self.world = world = world or World()
        self.config = config = directory.run.config
        self.git_commit = git_commit()  # of the code that is loaded, whatever becomes of the checkout meanwhile
        kept = load_checkpoint(directory.checkpoint, directory.run.fingerprint, report)
        before = kept.environment if kept else {}
        self.device = choose_device(world.device(config.device))
        keep_freed_memory()
        threads = set_threads(config, before.get("threads"))
        set_up_torch(config, self.device, report)
        self.splits = open_splits(config, self.device, workers=choose_workers(config.workers, world.local_size))
        self.steps = Steps(config, self.splits.train, world)

        self.storage = before.get("storage", getattr(config.model, "storage", "auto"))
        self.learner = self._start(kept)
        self.storage = self.learner.storage
        if self.device.type == "cpu" and self.storage != "dense" and (reason := why_not_own()):
            report(f"torch's kernels multiply the nonzeros, which takes about twice as long as with our own: {reason}")
        environment = describe_environment(self.device, threads, self.storage, config, world.size)
        self.state = kept or Checkpoint(directory.run.fingerprint, environment, now())
        self.sums = Sums(len(self.steps), self.device, self.state.sums if world.first else None)
        self.began = self.saved = time.monotonic()
        self.asked, self.good = 0, True
        if world.first:
            remove_leftovers(directory.checkpoint)
            directory.restore_rows(self.state.rows)
        self.probes = Probes(directory, self.learner, self.splits.train, len(self.state.rows)) if world.first else None
        if kept:
            self._tell_where(environment)

    def run(self) -> Path:
        """Train what is left, evaluate, and write predictions and record."""
        try:
            for _ in self.epochs():
                pass
            return self._finish()
        finally:
            self.splits.close()

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train what is left, an epoch a turn: its row, which is told and in a checkpoint where one was due."""
        rows, epochs = self.state.rows, self.config.epochs
        progress = TrainingProgress(epochs, len(self.steps), len(rows) + 1, self.state.step, shown=self.world.first)
        try:
            for epoch in range(len(rows) + 1, epochs + 1):
                row = self._epoch(epoch, progress)
                if self.probes is not None:
                    self.probes.after(epoch, self.learner)
                rows.append(row)
                self.state.step, self.state.seconds = 0, 0.0
                self.sums = Sums(len(self.steps), self.device)
                if epoch % self.config.checkpoint.every == 0 or epoch == epochs or self._is_kept(epoch):
                    self._save()
                if self.world.first:
                    self.directory.append_row(row)
                    progress.epoch(row)
                yield row
        except RunStopped:
            if self.good and not self._earliest_bad():  # else it diverges once more when it goes on, and says where
                self._save()
            raise
        finally:
            progress.close()

    def _epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, Any]:
        """Train what is left of an epoch and evaluate: its row of metrics."""
        learner, state, images = self.learner, self.state, len(self.splits.train)
        learner.train()
        self.began = time.monotonic() - state.seconds
        for step in self.steps.epoch(epoch, state.step):
            loss, logits = learner.step(step)
            self.sums.add(step.number, loss, logits, step.labels)
            state.step = step.number + 1
            progress.step()
            if state.step % LOOK_EVERY == 0:
                self._look(epoch)
            self._heed()
        self._look(epoch)
        state.seconds = time.monotonic() - self.began
        train_loss, train_accuracy = self.sums.means(images, self.world)
        row: dict[str, Any] = {
            "epoch": epoch,
            "time": time.time(),
            "learning_rate": self.steps.rate(epoch, len(self.steps) - 1),
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
        }
        for averaged in (False, True) if learner.average is not None else (False,):
            prefix = "ema_" if averaged else ""
            for name, split in (("validation", self.splits.validation), ("test", self.splits.test)):
                mean_loss, accuracy = evaluate(learner, split, self.world, self._heed, averaged=averaged)
                row |= {f"{prefix}{name}_loss": mean_loss, f"{prefix}{name}_accuracy": accuracy}
        self._check_finite(row)
        speed = {"images_per_second": images / state.seconds, "seconds": state.seconds}
        return {**row, **pruned(learner.optimizer), **speed}

    def _heed(self) -> None:
        """After each batch: act on signals and on a hold that is lost, and save where it is time."""
        if self.world.size == 1:
            self._check_hold()
            self.signals.check()
            if self._is_time():
                self._save_inside()
            return
        self.asked += 1
        if self.asked % ASK_EVERY:
            return
        lost: Exception | None = None
        try:
            self._check_hold()
        except Exception as error:
            lost = error
        wanted = self.world.most(_LOST if lost else self.signals.received or (_SAVE if self._is_time() else 0))
        if wanted == _LOST:
            raise lost or RunFailed("the first process has lost the run")
        if wanted == _SAVE:
            self._save_inside()
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

    def _start(self, kept: Checkpoint | None) -> Learner:
        """What learns, as a checkpoint has it or, without one, before the first step."""
        learner = Learner(self.directory.run, self.device, self.world, self.storage)
        if kept:
            learner.load_from(kept)
        elif isinstance(self.config.model, Pretrainable):
            for note in start_from(learner.network, self.config.model):
                self.report(f"note: {note}")
        return learner

    def _tell_where(self, environment: dict[str, Any]) -> None:
        """Say where an earlier process stopped, and whether that was in another environment."""
        state = self.state
        inside = f" and {state.step} of {len(self.steps)} steps" if state.step else ""
        self.report(f"going on after epoch {len(state.rows)} of {self.config.epochs}{inside}")
        if {name: value for name, value in state.environment.items() if name != "mixed_environment"} != environment:
            state.environment = {**environment, "mixed_environment": True}
            self.report("the environment differs from the one this run began in: its last digits may differ too")

    def _save_inside(self) -> None:
        """Write a checkpoint inside an epoch."""
        self._look(len(self.state.rows) + 1)
        self._save()

    def _save(self) -> None:
        """Write a checkpoint of what is trained so far."""
        state, world, epoch = self.state, self.world, len(self.state.rows)
        if state.step:
            state.sums = world.total(self.sums.values.clone()).cpu()
            if world.size > 1:  # from here on the first process counts for all
                self.sums = Sums(len(self.steps), self.device, state.sums if world.first else None)
        else:
            state.sums = None
        if not world.first:
            return
        if 0 < state.step < len(self.steps):
            state.seconds = time.monotonic() - self.began
        self.learner.save_to(state)
        path = self.directory.checkpoint
        at_end = state.step == 0 and self._is_kept(epoch)
        state.save(path, keep=path.with_name(f"checkpoint-{epoch:04d}.pt") if at_end else None)
        self.saved = time.monotonic()

    def _earliest_bad(self) -> int:
        """0 where all losses of the epoch and all weights are finite; else the larger, the earlier a loss is not.

        1 is for weights alone. Over all processes; waits for the device.
        """
        bad = self.sums.first_bad()
        return self.world.most(int(not self.learner.is_finite()) if bad is None else len(self.steps) - bad + 1)

    def _look(self, epoch: int) -> None:
        """Raise ``RunDiverged``, with the step and the layer where it began, where a loss or a weight is not finite."""
        seen = self._earliest_bad()
        if not seen:
            return
        self.good = False
        where = (epoch, len(self.steps) - seen + 1) if seen > 1 else None
        kept = load_checkpoint(self.directory.checkpoint, self.directory.run.fingerprint)
        first = (len(kept.rows) + 1, kept.step) if kept else (1, 0)
        del self.learner  # for its memory
        self.learner = self._start(kept)
        self.learner.train()
        offence = find_offence(self.learner, self.steps.between(first, epoch), where, self.world, self._stop_if_asked)
        at, number = offence.step if offence else where or (epoch, self.state.step - 1)
        what = offence.what if offence else "the same steps trained again stay finite, so look at the machine"
        raise diverged(f"step {number + 1} of epoch {at}", self.steps.rate(at, number), what, self.state.rows)

    def _stop_if_asked(self) -> None:
        if wanted := self.world.most(self.signals.received or 0):
            self.signals.stop(wanted)

    def _check_finite(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                what = find_in_evaluation(self.learner, (self.splits.validation, self.splits.test), self.world)
                raise diverged(f"the {name} of epoch {row['epoch']}", row["learning_rate"], what, self.state.rows)

    def _finish(self) -> Path:
        predictions = predict(self.learner, self.splits.test, self.world)
        if self.world.first:
            with written_whole(self.directory.predictions) as file:
                np.savez_compressed(file, **predictions)
            start = at_start(self.directory.run, self.splits.train)
            measured = outcome(self.state, len(self.splits.train), self.device, self.git_commit, start)
            self.directory.write_result(completed(self.directory.run, measured))
            previous(self.directory.checkpoint).unlink(missing_ok=True)
        self.world.most(0)  # nobody leaves before the result is there
        return self.directory.path / "result.json"


_SAVE, _LOST = 500, 1000
"""What processes tell each other beside the number of a signal."""
