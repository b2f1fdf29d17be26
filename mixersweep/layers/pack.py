"""Compute the layers of a pack: R networks of one architecture in one program, each bit by bit as if it were alone.

A pack calls its network inside ``torch.func.vmap``, where a layer sees the tensors of one run. Most operations work
there as they are. Where vmap's batching rule is slow, or its result would depend on the other runs, a layer calls
``for_all_runs`` with a function of the tensors of all runs, each (R, ...), in ordinary torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ACTIVE: list[bool] = []


@contextmanager
def in_pack() -> Iterator[None]:
    """Context in which layers compute for a pack; only ``call`` enters it."""
    _ACTIVE.append(True)
    try:
        yield
    finally:
        _ACTIVE.pop()


def is_packed() -> bool:
    """Whether a layer is called inside a pack, and so sees the tensors of one of its runs."""
    return bool(_ACTIVE)


def call(function: Callable[..., Any], *arguments: Any, in_dims: Any = 0) -> Any:
    """Call ``function``, written for the tensors of one run, for all runs; arguments and results are (R, ...).

    An argument whose ``in_dims`` is None is the same for all runs.
    """
    with in_pack():
        return torch.func.vmap(function, in_dims=in_dims)(*arguments)


def for_all_runs(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call ``function``, written for the tensors of all runs, from a layer that sees only those of one run.

    Each tensor among ``arguments`` reaches ``function`` with its axis of runs in front, (R, ...); others are passed on
    unchanged. Autograd differentiates ``function`` itself, so its operations need gradients.
    """
    y: Tensor = _ForAllRuns.apply(function, *arguments)
    return y


class _ForAllRuns(torch.autograd.Function):
    """Leaves vmap: torch calls the ``vmap`` rule with the tensors of all runs."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise AssertionError("only inside a pack, where at least one argument is a run's own")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save nothing: this function is never differentiated itself."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Tensor], *arguments: Any) -> Any:
        moved = []
        for argument, axis in zip(arguments, in_dims[1:], strict=True):
            if isinstance(argument, Tensor):
                whole = (
                    argument.movedim(axis, 0) if axis is not None else argument.expand(info.batch_size, *argument.shape)
                )
                moved.append(whole)
            else:
                moved.append(argument)
        return function(*moved), 0
