"""The training loop: one run, or several as one program, epoch by epoch from their checkpoints to their results.

An epoch is trained, evaluated and checkpointed before its row is written to ``metrics.jsonl``. All randomness of a step
is a function of seeds, epoch and step, so a run that is stopped anywhere resumes from its last checkpoint as if nothing
had happened, in another pack or alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mixersweep.commit import git_commit
from mixersweep.data.splits import Splits, open_splits, share_splits
from mixersweep.data.stream import choose_workers
from mixersweep.errors import MixersweepError, RunDiverged, RunFailed, RunHeld, RunStopped
from mixersweep.layers import product
from mixersweep.layers.nonzeros import why_not_own
from mixersweep.runs import completed
from mixersweep.runs.files import written_whole
from mixersweep.training.checkpoint import load_checkpoint, previous
from mixersweep.training.divergence import diverged, find_in_evaluation, find_offence
from mixersweep.training.engine import Eager, Engine
from mixersweep.training.environment import (
    as_recorded_today,
    choose_device,
    describe_environment,
    keep_freed_memory,
    set_threads,
    set_up_torch,
)
from mixersweep.training.faults import explained, is_out_of_memory
from mixersweep.training.learner import Learner
from mixersweep.training.member import Member
from mixersweep.training.outcome import now, outcome
from mixersweep.training.packed import Packed
from mixersweep.training.packing import is_packed, why_alone
from mixersweep.training.parallel import World
from mixersweep.training.probes import Probes
from mixersweep.training.progress import TrainingProgress
from mixersweep.training.readout import at_start
from mixersweep.training.schedule import learning_rate
from mixersweep.training.signals import StopSignals
from mixersweep.training.steps import Steps

LOOK_EVERY = 50
"""Steps between two checks that losses and weights are finite, each of which waits for the device."""

ASK_EVERY = 10
"""Batches between two exchanges in which several processes agree to go on, save or stop."""

SAVING = 0.1
"""The largest fraction of its time that a pack spends on checkpoints, which can take longer than an epoch."""

Report = Callable[[str], None]


class Training:
    """The training of runs that are all at the same epoch and step; ``run`` trains them."""

    def __init__(self, members: Sequence[Member], signals: StopSignals, report: Report, world: World) -> None:
        self.members, self.signals, self.report, self.world = list(members), signals, report, world
        self.places = {id(member): place for place, member in enumerate(members)}
        self.config = config = members[0].config
        self.git_commit = git_commit()  # of the code that is loaded, whatever becomes of the checkout meanwhile
        before = as_recorded_today(members[0].kept.environment if members[0].kept else {})
        self.device = choose_device(world.device(config.device))
        keep_freed_memory()
        threads = set_threads(config, before.get("threads"))
        product.use(before.get("products"))
        set_up_torch(config, self.device, report)
        self.splits: list[Splits] = []
        self.engine = self._engine(before.get("storage", getattr(config.model, "storage", "auto")))
        storage = self.engine.storage
        if storage != "dense" and (reason := why_not_own(self.device)):
            slow, random = "takes about twice as long as with our own", "gives other last digits in every run"
            price = slow if self.device.type == "cpu" else random
            report(f"torch's kernels multiply the nonzeros, which {price}: {reason}")
        self.environment = describe_environment(
            self.device, threads, storage, config, world.size, engine=self.engine.name
        )
        if not self.engine.is_the_same_alone():
            self.environment["pack_size"] = len(members)
            report(f"the last digits of these {len(members)} runs depend on there being so many in the pack")
        kind = self.environment["device_kind"]
        report(f"on {kind}" if self.device.type == "cuda" else f"on a CPU, {threads} thread{'s' * (threads > 1)}")
        began = now()
        for member in members:
            member.begin(self.environment, began, writes=world.first)
        self.epoch, self.step = members[0].position
        self.began = self.saved = time.monotonic()
        self.trained: float | None = None  # seconds of the steps of this epoch, once they are done
        self.asked, self.saving, self.saved_epoch, self.good = 0, 0.0, -1, True
        self.probes = [
            Probes(member.directory, splits.train, member.told, world.size) if world.first else None
            for member, splits in zip(members, self.splits, strict=True)
        ]
        if members[0].kept:
            self._tell_where()

    @property
    def learner(self) -> Learner | None:
        """The learner of the eager engine; None for the packed engine, or if none could be set up."""
        engine = getattr(self, "engine", None)  # none where it could not be set up
        return engine.learner(0) if isinstance(engine, Eager) else None

    @property
    def left(self) -> list[Member]:
        """The runs that have not ended, in the order of their indices."""
        return [member for member in self.members if not member.is_over]

    def run(self, until: int) -> None:
        """Train up to epoch ``until``; after the last epoch of all, write predictions and results."""
        try:
            for _ in self.epochs(until):
                pass
            if until == self.config.epochs:
                self._finish()
        finally:
            for splits in self.splits:
                splits.close()

    def epochs(self, until: int | None = None) -> Iterator[list[dict[str, Any]]]:
        """Train up to epoch ``until`` and yield, after each epoch, the rows of metrics of the runs.

        By then, checkpoints that are due have been written, and rows appended to ``metrics.jsonl``.
        """
        until = self.config.epochs if until is None else until
        shown = TrainingProgress(
            self.config.epochs, self.engine.steps, self.epoch + 1, self.step, shown=self.world.first
        )
        try:
            while self.epoch < until:
                rows = self._epoch(self.epoch + 1, shown)
                self.epoch, self.step = self.epoch + 1, 0
                for member, row in zip(self.left, rows, strict=True):
                    member.state.rows.append(row)
                    member.state.step, member.state.seconds, member.state.sums = 0, 0.0, None
                self._for_each(self._probe)
                if self._is_due(until):
                    self._save()
                self._tell()
                if self.world.first:
                    shown.epoch(rows)
                yield rows
                self._let_go()
        except RunStopped:
            if self.good:  # a bad one diverges once more when it goes on, and says where
                self._save_good(self._bad())
                self._tell()
            raise
        finally:
            shown.close()

    def _epoch(self, epoch: int, shown: TrainingProgress) -> list[dict[str, Any]]:
        """Train the remaining steps of an epoch and evaluate; returns a row of metrics for each run."""
        engine, images = self.engine, len(self.splits[0].train)
        self.began, self.trained = time.monotonic() - max(member.state.seconds for member in self.left), None
        for number in engine.epoch(epoch, self.step, [member.state.sums for member in self.members]):
            self.step = number + 1
            shown.step()
            if self.step % LOOK_EVERY == 0:
                self._look(epoch)
            self._heed()
        self._look(epoch)
        self.trained = seconds = time.monotonic() - self.began
        means = engine.means()
        evaluated = {
            f"{prefix}{split}": engine.evaluate(split, self._heed, averaged=bool(prefix))
            for prefix in ("", "ema_")[: 1 + (self.config.ema is not None)]
            for split in ("validation", "test")
        }
        rows = []
        for member in self.left:
            place = self._place(member)
            train_loss, train_accuracy = means[place]
            row: dict[str, Any] = {
                "epoch": epoch,
                "time": time.time(),
                "learning_rate": self._rate(member, epoch, engine.steps - 1),
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
            }
            for name, found in evaluated.items():
                row[f"{name}_loss"], row[f"{name}_accuracy"] = found[place]
            speed = {"images_per_second": images / seconds, "seconds": seconds}
            rows.append({**row, **engine.more(place), **speed})
        return self._finite(rows)

    def _heed(self) -> None:
        """Act on signals and lost holds, and save if it is time; called after each batch."""
        if self.world.size == 1:
            self._check_holds()
            self.signals.check()
            if self._is_time():
                self._save_inside()
            return
        self.asked += 1
        if self.asked % ASK_EVERY:
            return
        lost: Exception | None = None
        try:
            self._check_holds()
        except Exception as error:
            lost = error
        wanted = self.world.most(_LOST if lost else self.signals.received or (_SAVE if self._is_time() else 0))
        if wanted == _LOST:
            raise lost or RunFailed("the first process has lost the run")
        if wanted == _SAVE:
            self._save_inside()
        elif wanted:
            self.signals.stop(wanted)

    def _check_holds(self) -> None:
        """Mark runs that were cancelled or taken over, which leave at the end of the epoch; raise if that is all."""
        for member in self.left:
            if member.leaving is None:
                try:
                    member.check_hold()
                except MixersweepError as error:
                    member.leaving = error
        leaving = [member.leaving for member in self.left]
        if all(leaving) and leaving[0] is not None:
            self._let_go()
            raise leaving[0]

    def _let_go(self) -> None:
        for member in self.left:
            if member.leaving is not None:
                self._drop(member, member.leaving)

    def _drop(self, member: Member, error: BaseException) -> None:
        """End one run with an error; the others go on, and compute the same. Raises the error if none is left."""
        alone = len(self.left) == 1
        if self.world.first and not isinstance(error, RunHeld):
            with contextlib.suppress(OSError):  # of a disk that is full, which is what ends it
                member.tell()
        ended = member.end(error) or error
        if alone:
            raise ended
        self.report(f"{member.directory.path.name}: {ended}")

    def _for_each(self, act: Callable[[Member], None]) -> None:
        """Call ``act`` for each run that is not leaving; if it fails for one of several, only that run ends."""
        for member in self.left:
            if member.leaving is not None:
                continue
            try:
                act(member)
            except Exception as error:
                if len(self.left) == 1 or is_out_of_memory(error):
                    raise
                self._drop(member, explained(error, member.directory, self.world, None))

    def _probe(self, member: Member) -> None:
        place = self._place(member)
        if (probes := self.probes[place]) is not None:
            probes.after(self.epoch, partial(self.engine.learner, place))

    def _is_time(self) -> bool:
        minutes = self.config.checkpoint.minutes
        return self.world.first and minutes is not None and time.monotonic() - self.saved > 60 * minutes

    def _is_due(self, until: int) -> bool:
        """Whether a checkpoint is due after this epoch; a pack skips some to spend at most ``SAVING`` on them."""
        if self.epoch in (until, self.config.epochs) or self._is_kept(self.epoch):
            return True
        if len(self.left) > 1 and self.saving > SAVING * (time.monotonic() - self.saved):
            return False
        return self.epoch % self.config.checkpoint.every == 0

    def _is_kept(self, epoch: int) -> bool:
        return epoch in (self.config.checkpoint.keep or [])

    def _engine(self, storage: str) -> Engine:
        """Set up the engine, with the states of the runs' checkpoints if there are any."""
        members, config, device = self.members, self.config, self.device
        if self.world.size == 1 and is_packed(config, device.type) and not members[0].is_eager:
            self.splits = share_splits([member.config for member in members], device)
            runs, kept = [member.directory.run for member in members], [member.kept for member in members]
            return Packed(runs, device, self.splits, storage, kept)
        if config.engine == "packed" and (reason := why_alone(config)):
            self.report(f"note: engine=packed: {reason}, operation by operation")
        (member,) = members
        workers = choose_workers(config.workers, self.world.local_size)
        self.splits = [open_splits(config, device, workers=workers)]
        return Eager(member.directory.run, device, self.world, storage, self.splits[0], member.kept, self.report)

    def _place(self, member: Member) -> int:
        return self.places[id(member)]

    def _rate(self, member: Member, epoch: int, number: int) -> float:
        steps = self.engine.steps
        return learning_rate(member.config.optim, (epoch - 1) * steps + number, steps, self.config.epochs)

    def _tell(self) -> None:
        """Append new rows to ``metrics.jsonl``; those of a pack only once they are in a checkpoint."""
        if self.world.first and (len(self.left) == 1 or self.saved_epoch == self.epoch):
            self._for_each(Member.tell)

    def _tell_where(self) -> None:
        """Report where an earlier process stopped, and whether its environment was another."""
        inside = f" and {self.step} of {self.engine.steps} steps" if self.step else ""
        self.report(f"going on after epoch {self.epoch} of {self.config.epochs}{inside}")
        differs = False
        for member in self.members:
            before = as_recorded_today(member.state.environment)
            if {name: value for name, value in before.items() if name != "mixed_environment"} != self.environment:
                member.state.environment = {**self.environment, "mixed_environment": True}
                differs = True
        if differs:
            self.report("the environment differs from the one this run began in: its last digits may differ too")

    def _save_inside(self) -> None:
        """Write checkpoints inside an epoch, after checking that all is finite."""
        self._look(self.epoch + 1)
        self._save()

    def _save(self) -> None:
        """Write a checkpoint of each run."""
        began = time.monotonic()
        self._for_each(self._save_one)
        self.saved, self.saved_epoch = time.monotonic(), self.epoch
        self.saving = self.saved - began

    def _save_good(self, bad: Sequence[int]) -> None:
        """Write a checkpoint of each run whose code in ``bad`` (``Engine.bad``) is 0: all finite."""
        good = [id(member) for member, seen in zip(self.left, bad, strict=True) if not seen]
        self._for_each(lambda member: self._save_one(member) if id(member) in good else None)
        self.saved_epoch = self.epoch if len(good) == len(bad) else self.saved_epoch

    def _save_one(self, member: Member) -> None:
        state, place = member.state, self._place(member)
        state.step = self.step
        state.sums = self.engine.sums_of(place) if self.step else None
        if not self.world.first:
            return
        member.confirm_hold()
        if self.step:
            state.seconds = time.monotonic() - self.began if self.trained is None else self.trained
        self.engine.save_to(place, state)
        path = member.directory.checkpoint
        at_end = self.step == 0 and self._is_kept(self.epoch)
        state.save(path, keep=path.with_name(f"checkpoint-{self.epoch:04d}.pt") if at_end else None)
        state.model, state.optimizer, state.average = {}, {}, {}  # for their memory

    def _bad(self) -> list[int]:
        """The codes of ``Engine.bad`` for the runs that have not ended."""
        found = self.engine.bad()
        return [found[self._place(member)] for member in self.left]

    def _look(self, epoch: int) -> None:
        """End each run whose losses or weights are not finite, naming the step and the layer where that began."""
        bad = self._bad()
        if any(bad) and len(bad) > 1:  # to find where it began takes its time, in which the others may be stopped
            self._save_good(bad)
        for member, seen in zip(self.left, bad, strict=True):
            if seen:
                self._drop(member, self._offence(member, seen, epoch))

    def _offence(self, member: Member, seen: int, epoch: int) -> RunDiverged:
        """Train the run again from its last checkpoint to find the first step and layer that are not finite."""
        self.good = len(self.left) > 1
        steps_of_epoch = self.engine.steps
        where = (epoch, steps_of_epoch - seen + 1) if seen > 1 else None
        splits, storage = self.splits[self._place(member)], self.engine.storage
        kept = load_checkpoint(member.directory.checkpoint, member.directory.run.fingerprint)
        first = (len(kept.rows) + 1, kept.step) if kept else (1, 0)
        if len(self.members) == 1:
            del self.engine  # for its memory
        again = Eager(member.directory.run, self.device, self.world, storage, splits, kept)
        if len(self.members) == 1:
            self.engine = again
        learner = again.learner(0)
        learner.train()
        steps = Steps(member.config, splits.train, self.world)
        offence = find_offence(learner, steps.between(first, epoch), where, self.world, self._stop_if_asked)
        at, number = offence.step if offence else where or (epoch, self.step - 1)
        fine = "the same steps trained again stay finite, so look at the machine"
        if not isinstance(self.engine, Eager):
            fine = "the same steps trained again operation by operation stay finite"
        what = offence.what if offence else fine
        return diverged(f"step {number + 1} of epoch {at}", self._rate(member, at, number), what, member.state.rows)

    def _stop_if_asked(self) -> None:
        if wanted := self.world.most(self.signals.received or 0):
            self.signals.stop(wanted)

    def _finite(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows whose metrics are finite and end the other runs."""
        fine = []
        for member, row in zip(self.left, rows, strict=True):
            bad = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
            if bad:
                splits = self.splits[self._place(member)]
                learner = self.engine.learner(self._place(member))
                what = find_in_evaluation(learner, (splits.validation, splits.test), self.world)
                where = f"the {bad[0]} of epoch {row['epoch']}"
                self._drop(member, diverged(where, row["learning_rate"], what, member.state.rows))
            else:
                fine.append(row)
        return fine

    def _finish(self) -> None:
        predictions, size = self.engine.predict(), len(self.left)

        def finish(member: Member) -> None:
            run, place = member.directory.run, self._place(member)
            if self.world.first:
                member.confirm_hold()
                with written_whole(member.directory.predictions) as file:
                    np.savez_compressed(file, **predictions[place])
                images = self.splits[place].train
                start = at_start(run, images)
                measured = outcome(member.state, len(images), self.device, self.git_commit, start, size)
                member.directory.write_result(completed(run, measured))
                previous(member.directory.checkpoint).unlink(missing_ok=True)
            self.world.most(0)  # nobody leaves before the result is there
            member.end(None)

        self._for_each(finish)


_SAVE, _LOST = 500, 1000
"""Codes that processes exchange; smaller positive ones are the numbers of signals."""
