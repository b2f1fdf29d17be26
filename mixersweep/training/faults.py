"""Explain errors that end a run from outside: no memory, a full disk, a failed compiler, a lost process."""

from __future__ import annotations

import errno
import math
import traceback
from collections.abc import Callable, Iterator

import torch

from mixersweep.errors import MixersweepError, RunFailed
from mixersweep.runs import RunDirectory
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World

COMPILER_ERRORS = ("InvalidCxxCompiler", "CppCompileError", "BackendCompilerFailed", "InductorError")
"""Errors of torch's compiler, which has no one class for them and is imported only where it is used."""


def explain(error: Exception, directory: RunDirectory, world: World, learner: Learner | None) -> Exception:
    """Turn an error into a ``RunFailed`` that says what to do about it; unknown errors are returned as they are.

    After an out-of-memory error ``learner`` is used to find how many images fit; None if it is not set up.
    """
    if isinstance(error, MixersweepError):
        return error
    if (reason := describe_full_disk(error)) is not None:
        return RunFailed(
            f"{directory.path}: {reason}; the last checkpoint is whole: make room, and the same command goes on "
            f"({len(directory.rows())} of {directory.run.config.epochs} epochs are done)"
        )
    if is_out_of_memory(error):
        for each in causes(error):
            traceback.clear_frames(each.__traceback__)  # which hold on to the tensors of the step
        return RunFailed(_explain_out_of_memory(directory, world, learner))
    if any(type(each).__name__ in COMPILER_ERRORS for each in causes(error)):
        reason = next(line for line in str(error).splitlines() if line.strip()).strip()
        return RunFailed(
            f"{directory.path}: compile=true: torch could not compile the network ({reason}); it takes a C++ compiler, "
            "which CXX may name; compile=false trains without"
        )
    if world.size > 1 and is_lost_process(error):
        return RunFailed("another process of this run has ended, and says why; the same command goes on")
    return error


def describe_full_disk(error: BaseException) -> str | None:
    """The operating system's message if the cause is a full disk, a quota or a size limit, else None.

    The causes of the error are searched too: ``torch.save`` raises another error on top.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return next((each.strerror for each in causes(error) if isinstance(each, OSError) and each.errno in full), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is a failed allocation in torch, its libraries or Python."""
    return any(map(_is_failed_allocation, causes(error)))


def _is_failed_allocation(error: BaseException) -> bool:
    text = str(error)
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "CUDA error: out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of this run has gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def find_fitting_size(most: int, attempt: Callable[[int], None]) -> int | None:
    """Half of the largest size among most/2, most/4, ... whose ``attempt`` fits into memory; None if none does.

    Half, because training keeps more memory than one step does.
    """
    size = most // 2
    while size >= 1:
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                return None
            traceback.clear_frames(error.__traceback__)
        else:
            return max(1, size // 2)
        size //= 2
    return None


def _explain_out_of_memory(directory: RunDirectory, world: World, learner: Learner | None) -> str:
    config, a = directory.run.config, directory.run.architecture
    share = math.ceil(config.batch_size / world.size)
    size = math.ceil(share / config.accumulation)
    text = (
        f"out of memory with {size} images at once (batch_size={config.batch_size}, "
        f"accumulation={config.accumulation}; width {a.width}, depth {a.depth}, {a.parameters:,} parameters)"
    )
    fitting = find_fitting_size(size, learner.attempt) if learner is not None else None
    if learner is None or fitting is None:
        inside = "" if config.gradient_checkpointing else "gradient_checkpointing=true, or "
        return f"{text}; try {inside}a narrower network"
    smaller = f"batch_size={fitting * world.size} is another experiment"
    if learner.needs_whole_batches:
        return f"{text}; {fitting} fit: {smaller}"
    return f"{text}; {fitting} fit: accumulation={math.ceil(share / fitting)} computes the same, {smaller}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
