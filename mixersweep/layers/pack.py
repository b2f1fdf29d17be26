"""Packs: the layers of R networks of one architecture computed as one program, run by run to the last bit.

A pack calls its network inside ``torch.func.vmap``, where a layer sees the tensors of one run. Most operations need
nothing for that. Where vmap's own rule is slow, or its result would depend on the other runs, a layer hands over to
``stacked``: a function of the tensors of all runs, each with the runs in front, (R, ...), and ordinary torch beyond.
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
    """Within, layers compute for a pack; ``call`` and nobody else enters it."""
    _ACTIVE.append(True)
    try:
        yield
    finally:
        _ACTIVE.pop()


def is_packed() -> bool:
    """Whether the tensors that a layer sees are those of one run of a pack."""
    return bool(_ACTIVE)


def call(function: Callable[..., Any], *arguments: Any, in_dims: Any = 0) -> Any:
    """``function`` of the tensors of one run, called for all runs: arguments and results have the runs in front.

    An argument whose ``in_dims`` is None is the same for all runs.
    """
    with in_pack():
        return torch.func.vmap(function, in_dims=in_dims)(*arguments)


def stacked(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function`` of the tensors of all runs, (R, ...) each, called with those of one; other arguments as they are.

    ``function`` is differentiated as it stands: it is built of operations that have gradients.
    """
    y: Tensor = _Stacked.apply(function, *arguments)
    return y


class _Stacked(torch.autograd.Function):
    """The door out of vmap: its rule is called with the tensors of all runs."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise AssertionError("only inside a pack, where at least one argument is a run's own")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing: it is never differentiated itself."""

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
