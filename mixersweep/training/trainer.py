"""Train run directories: one run, or a pack of runs that train together, each with its own hold and end state.

What decides here is who trains with whom and which error ends whom; ``loop.Training`` does the training.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from mixersweep.errors import RunHeld, RunStopped, UserError
from mixersweep.runs import RunDirectory
from mixersweep.title import process_title
from mixersweep.tracking import start as start_mirror
from mixersweep.training.environment import choose_device
from mixersweep.training.faults import causes, explain, is_out_of_memory
from mixersweep.training.loop import Report, Training
from mixersweep.training.member import Member
from mixersweep.training.packing import is_packed, why_apart
from mixersweep.training.parallel import World
from mixersweep.training.signals import StopSignals


def train(directory: RunDirectory, signals: StopSignals, report: Report, world: World | None = None) -> Path:
    """Train the remaining epochs of a run and return the path of its ``result.json``.

    The run is held, so that no other process trains it, and mirrored to W&B if that is set. Of several processes only
    the first holds and writes. Raises ``RunHeld``, ``RunCancelled``, ``RunStopped``, ``RunDiverged`` or ``RunFailed``,
    as recorded in the state of the run.
    """
    (error,) = train_pack([directory], signals, report, world)
    if error is not None:
        raise error
    return directory.path / "result.json"


def train_pack(
    directories: Sequence[RunDirectory], signals: StopSignals, report: Report, world: World | None = None
) -> list[BaseException | None]:
    """Train the remaining epochs of a pack of runs; returns for each run the error that ended it, or None.

    Raises ``UserError`` for runs that cannot form a pack (``packing.why_apart``). An error that ends the process, such
    as a signal, stops all unfinished runs so that they can be resumed.
    """
    world = world or World()
    for other in directories[1:]:
        if (reason := why_apart(directories[0].run, other.run)) is not None:
            raise UserError(f"run_dir={other.path}: cannot be in a pack with {directories[0].path.name}: {reason}")
    others = f" and {len(directories) - 1} more" if len(directories) > 1 else ""
    with process_title(f"train {directories[0].path.name}{others}"):
        return _train_members([Member(directory) for directory in directories], signals, report, world)


def _train_members(
    members: Sequence[Member], signals: StopSignals, report: Report, world: World
) -> list[BaseException | None]:
    """Hold, mirror, train and end the runs; returns for each the error that ended it, or None."""
    mirror, has_announced = None, False
    try:
        try:
            if world.is_first:
                for member in members:
                    member.hold()
                if left := [member.directory for member in members if not member.is_over]:
                    has_announced = not world.max(0)
                    mirror = start_mirror(left, report)
            elif world.max(0):
                raise RunHeld("the first process does not hold the run")
            _train_groups(members, signals, report, world)
        except BaseException as error:
            for member in members:
                member.end(error)
            if len(members) > 1:
                raise
        return [member.error for member in members]
    finally:
        if world.is_first and not has_announced:
            world.max(1)
        if mirror is not None:
            mirror.finish()


def _train_groups(members: Sequence[Member], signals: StopSignals, report: Report, world: World) -> None:
    """Train the runs in groups at the same step; those with fewer epochs catch up first.

    An error ends only the runs of its group; ``RunStopped`` is raised and ends all.
    """
    config = members[0].config
    packed = world.size == 1 and is_packed(config, choose_device(world.device(config.device)).type)
    group_size = len(members) if packed else 1
    for member in members:
        member.load(report)
    while left := [member for member in members if member.is_still_held()]:
        first, *later = sorted({member.position for member in left})
        until = max(first[0] + 1, later[0][0]) if later else config.epochs
        group = [member for member in left if member.position == first][:group_size]
        training: Training | None = None
        try:
            training = Training(group, signals, report, world)
            training.run(until)
        except RunStopped:
            raise
        except Exception as error:
            if is_out_of_memory(error) and packed and not group[0].is_eager:
                group_size = -(-len(group) // 2)
                group[0].is_eager = len(group) == 1
                report(_describe_split(group))
                for each in causes(error):
                    traceback.clear_frames(each.__traceback__)  # which hold on to the tensors of the step
            else:
                learner = training.learner if training is not None and len(group) == 1 else None
                for member in group:
                    explanation = explain(error, member.directory, world, learner)
                    explanation.__cause__ = error if explanation is not error else error.__cause__
                    member.end(explanation)
        del training
        for member in group:
            member.load(report)


def _describe_split(group: Sequence[Member]) -> str:
    if len(group) == 1:
        return "the run does not fit into the memory of the device as one program: it trains operation by operation"
    return f"{len(group)} runs do not fit into the memory of the device: {-(-len(group) // 2)} at a time"
