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
from mixersweep.runs import completed_record
from mixersweep.runs.files import open_atomic
from mixersweep.training.checkpoint import load_checkpoint, previous
from mixersweep.training.divergence import divergence_error, find_divergence, find_in_evaluation
from mixersweep.training.engine import Eager, Engine
from mixersweep.training.environment import (
    as_recorded_today,
    choose_device,
    describe_environment,
    keep_freed_memory,
    set_threads,
    set_up_torch,
)
from mixersweep.training.faults import explain, is_out_of_memory
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

CHECK_EVERY = 50
"""Steps between two checks that losses and weights are finite, each of which waits for the device."""

AGREE_EVERY = 10
"""Batches between two exchanges in which several processes agree to go on, save or stop."""

SAVING_FRACTION = 0.1
"""The largest fraction of its time that a pack spends on checkpoints, which can take longer than an epoch."""

Report = Callable[[str], None]


class Training:
    """The training of runs that are all at the same epoch and step; ``run`` trains them."""

    def __init__(self, members: Sequence[Member], signals: StopSignals, report: Report, world: World) -> None:
        self.members, self.signals, self.report, self.world = list(members), signals, report, world
        self.run_indices = {id(member): index for index, member in enumerate(members)}
        self.config = config = members[0].config
        self.git_commit = git_commit()  # of the code that is loaded, whatever becomes of the checkout meanwhile
        before = as_recorded_today(members[0].kept.environment if members[0].kept else {})
        self.device = choose_device(world.device(config.device))
        keep_freed_memory()
        threads = set_threads(config, before.get("threads"))
        product.use(before.get("products"))
        set_up_torch(config, self.device, report)
        self.splits: list[Splits] = []
        self.engine = self._make_engine(before.get("storage", getattr(config.model, "storage", "auto")))
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
            member.begin(self.environment, began, writes=world.is_first)
        self.epoch, self.step = members[0].position
        self.began = self.saved_at = time.monotonic()
        self.train_seconds: float | None = None  # seconds of the steps of this epoch, once they are done
        self.polls, self.save_seconds, self.saved_epoch, self.is_worth_saving = 0, 0.0, -1, True
        self.probes = [
            Probes(member.directory, splits.train, member.rows_written, world.size) if world.is_first else None
            for member, splits in zip(members, self.splits, strict=True)
        ]
        if members[0].kept:
            self._report_resumption()

    @property
    def learner(self) -> Learner | None:
        """The learner of the eager engine; None for the packed engine, or if none could be set up."""
        engine = getattr(self, "engine", None)  # none where it could not be set up
        return engine.learner(0) if isinstance(engine, Eager) else None

    @property
    def active(self) -> list[Member]:
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
            self.config.epochs, self.engine.steps, self.epoch + 1, self.step, shown=self.world.is_first
        )
        try:
            while self.epoch < until:
                rows = self._train_epoch(self.epoch + 1, shown)
                self.epoch, self.step = self.epoch + 1, 0
                for member, row in zip(self.active, rows, strict=True):
                    member.state.rows.append(row)
                    member.state.step, member.state.seconds, member.state.sums = 0, 0.0, None
                self._for_each(self._probe)
                if self._is_epoch_save_due(until):
                    self._save()
                self._append_rows()
                if self.world.is_first:
                    shown.epoch(rows)
                yield rows
                self._end_leaving()
        except RunStopped:
            if self.is_worth_saving:  # one that diverged does so again when it resumes, and says where
                self._save_finite(self._nonfinite_codes())
                self._append_rows()
            raise
        finally:
            shown.close()

    def _train_epoch(self, epoch: int, shown: TrainingProgress) -> list[dict[str, Any]]:
        """Train the remaining steps of an epoch and evaluate; returns a row of metrics for each run."""
        engine, images = self.engine, len(self.splits[0].train)
        self.began, self.train_seconds = time.monotonic() - max(member.state.seconds for member in self.active), None
        for number in engine.epoch(epoch, self.step, [member.state.sums for member in self.members]):
            self.step = number + 1
            shown.step()
            if self.step % CHECK_EVERY == 0:
                self._check_finite(epoch)
            self._poll_signals()
        self._check_finite(epoch)
        self.train_seconds = seconds = time.monotonic() - self.began
        means = engine.means()
        evaluated = {
            f"{prefix}{split}": engine.evaluate(split, self._poll_signals, averaged=bool(prefix))
            for prefix in ("", "ema_")[: 1 + (self.config.ema is not None)]
            for split in ("validation", "test")
        }
        rows = []
        for member in self.active:
            index = self._run_index(member)
            train_loss, train_accuracy = means[index]
            row: dict[str, Any] = {
                "epoch": epoch,
                "time": time.time(),
                "learning_rate": self._learning_rate(member, epoch, engine.steps - 1),
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
            }
            for name, found in evaluated.items():
                row[f"{name}_loss"], row[f"{name}_accuracy"] = found[index]
            speed = {"images_per_second": images / seconds, "seconds": seconds}
            rows.append({**row, **engine.extra_metrics(index), **speed})
        return self._end_nonfinite(rows)

    def _poll_signals(self) -> None:
        """Act on signals and lost holds, and save if it is time; called after each batch."""
        if self.world.size == 1:
            self._check_holds()
            self.signals.check()
            if self._is_timed_save_due():
                self._save_within_epoch()
            return
        self.polls += 1
        if self.polls % AGREE_EVERY:
            return
        lost: Exception | None = None
        try:
            self._check_holds()
        except Exception as error:
            lost = error
        request = self.world.max(
            _LOST if lost else self.signals.received or (_SAVE if self._is_timed_save_due() else 0)
        )
        if request == _LOST:
            raise lost or RunFailed("the first process has lost the run")
        if request == _SAVE:
            self._save_within_epoch()
        elif request:
            self.signals.stop(request)

    def _check_holds(self) -> None:
        """Mark runs that were cancelled or taken over, which leave at the end of the epoch; raise if that is all."""
        for member in self.active:
            if member.leaving is None:
                try:
                    member.check_hold()
                except MixersweepError as error:
                    member.leaving = error
        leaving = [member.leaving for member in self.active]
        if all(leaving) and leaving[0] is not None:
            self._end_leaving()
            raise leaving[0]

    def _end_leaving(self) -> None:
        """End the runs that were cancelled or taken over."""
        for member in self.active:
            if member.leaving is not None:
                self._end_run(member, member.leaving)

    def _end_run(self, member: Member, error: BaseException) -> None:
        """End one run with an error; the others go on, and compute the same. Raises the error if none is left."""
        alone = len(self.active) == 1
        if self.world.is_first and not isinstance(error, RunHeld):
            with contextlib.suppress(OSError):  # of a disk that is full, which is what ends it
                member.append_rows()
        ended = member.end(error) or error
        if alone:
            raise ended
        self.report(f"{member.directory.path.name}: {ended}")

    def _for_each(self, act: Callable[[Member], None]) -> None:
        """Call ``act`` for each run that is not leaving; if it fails for one of several, only that run ends."""
        for member in self.active:
            if member.leaving is not None:
                continue
            try:
                act(member)
            except Exception as error:
                if len(self.active) == 1 or is_out_of_memory(error):
                    raise
                self._end_run(member, explain(error, member.directory, self.world, None))

    def _probe(self, member: Member) -> None:
        index = self._run_index(member)
        if (probes := self.probes[index]) is not None:
            probes.after(self.epoch, partial(self.engine.learner, index))

    def _is_timed_save_due(self) -> bool:
        minutes = self.config.checkpoint.minutes
        return self.world.is_first and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _is_epoch_save_due(self, until: int) -> bool:
        """Whether a checkpoint is due after this epoch; a pack skips some, to spend ``SAVING_FRACTION`` at most."""
        if self.epoch in (until, self.config.epochs) or self._is_kept(self.epoch):
            return True
        if len(self.active) > 1 and self.save_seconds > SAVING_FRACTION * (time.monotonic() - self.saved_at):
            return False
        return self.epoch % self.config.checkpoint.every == 0

    def _is_kept(self, epoch: int) -> bool:
        return epoch in (self.config.checkpoint.keep or [])

    def _make_engine(self, storage: str) -> Engine:
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

    def _run_index(self, member: Member) -> int:
        return self.run_indices[id(member)]

    def _learning_rate(self, member: Member, epoch: int, number: int) -> float:
        steps = self.engine.steps
        return learning_rate(member.config.optim, (epoch - 1) * steps + number, steps, self.config.epochs)

    def _append_rows(self) -> None:
        """Append new rows to ``metrics.jsonl``; those of a pack only once they are in a checkpoint."""
        if self.world.is_first and (len(self.active) == 1 or self.saved_epoch == self.epoch):
            self._for_each(Member.append_rows)

    def _report_resumption(self) -> None:
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

    def _save_within_epoch(self) -> None:
        """Write checkpoints inside an epoch, after checking that all is finite."""
        self._check_finite(self.epoch + 1)
        self._save()

    def _save(self) -> None:
        """Write a checkpoint of each run."""
        began = time.monotonic()
        self._for_each(self._save_run)
        self.saved_at, self.saved_epoch = time.monotonic(), self.epoch
        self.save_seconds = self.saved_at - began

    def _save_finite(self, codes: Sequence[int]) -> None:
        """Write a checkpoint of each run whose code (``Engine.nonfinite_codes``) is 0: all finite."""
        finite = [id(member) for member, code in zip(self.active, codes, strict=True) if not code]
        self._for_each(lambda member: self._save_run(member) if id(member) in finite else None)
        self.saved_epoch = self.epoch if len(finite) == len(codes) else self.saved_epoch

    def _save_run(self, member: Member) -> None:
        state, index = member.state, self._run_index(member)
        state.step = self.step
        state.sums = self.engine.sums_of(index) if self.step else None
        if not self.world.is_first:
            return
        member.confirm_hold()
        if self.step:
            state.seconds = time.monotonic() - self.began if self.train_seconds is None else self.train_seconds
        self.engine.save_to(index, state)
        path = member.directory.checkpoint
        at_end = self.step == 0 and self._is_kept(self.epoch)
        state.save(path, keep=path.with_name(f"checkpoint-{self.epoch:04d}.pt") if at_end else None)
        state.model, state.optimizer, state.average = {}, {}, {}  # for their memory

    def _nonfinite_codes(self) -> list[int]:
        """The codes of ``Engine.nonfinite_codes`` for the runs that have not ended."""
        found = self.engine.nonfinite_codes()
        return [found[self._run_index(member)] for member in self.active]

    def _check_finite(self, epoch: int) -> None:
        """End each run whose losses or weights are not finite, naming the step and the layer where that began."""
        codes = self._nonfinite_codes()
        if any(codes) and len(codes) > 1:  # to find where it began takes its time, in which the others may be stopped
            self._save_finite(codes)
        for member, code in zip(self.active, codes, strict=True):
            if code:
                self._end_run(member, self._locate_divergence(member, code, epoch))

    def _locate_divergence(self, member: Member, code: int, epoch: int) -> RunDiverged:
        """Train the run again from its last checkpoint to find the first step and layer that are not finite."""
        self.is_worth_saving = len(self.active) > 1
        steps_of_epoch = self.engine.steps
        where = (epoch, steps_of_epoch - code + 1) if code > 1 else None
        splits, storage = self.splits[self._run_index(member)], self.engine.storage
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
        divergence = find_divergence(learner, steps.between(first, epoch), where, self.world, self._stop_if_signalled)
        at, number = divergence.step if divergence else where or (epoch, self.step - 1)
        fine = "the same steps trained again stay finite, so look at the machine"
        if not isinstance(self.engine, Eager):
            fine = "the same steps trained again operation by operation stay finite"
        what = divergence.what if divergence else fine
        return divergence_error(
            f"step {number + 1} of epoch {at}", self._learning_rate(member, at, number), what, member.state.rows
        )

    def _stop_if_signalled(self) -> None:
        if request := self.world.max(self.signals.received or 0):
            self.signals.stop(request)

    def _end_nonfinite(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows whose metrics are finite and end the other runs."""
        finite = []
        for member, row in zip(self.active, rows, strict=True):
            nonfinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
            if nonfinite:
                splits = self.splits[self._run_index(member)]
                learner = self.engine.learner(self._run_index(member))
                what = find_in_evaluation(learner, (splits.validation, splits.test), self.world)
                where = f"the {nonfinite[0]} of epoch {row['epoch']}"
                self._end_run(member, divergence_error(where, row["learning_rate"], what, member.state.rows))
            else:
                finite.append(row)
        return finite

    def _finish(self) -> None:
        predictions, size = self.engine.predict(), len(self.active)

        def finish(member: Member) -> None:
            run, index = member.directory.run, self._run_index(member)
            if self.world.is_first:
                member.confirm_hold()
                with open_atomic(member.directory.predictions) as file:
                    np.savez_compressed(file, **predictions[index])
                images = self.splits[index].train
                start = at_start(run, images)
                measured = outcome(member.state, len(images), self.device, self.git_commit, start, size)
                member.directory.write_result(completed_record(run, measured))
                previous(member.directory.checkpoint).unlink(missing_ok=True)
            self.world.max(0)  # nobody leaves before the result is there
            member.end(None)

        self._for_each(finish)


_SAVE, _LOST = 500, 1000
"""Codes that processes exchange; smaller positive ones are the numbers of signals."""
