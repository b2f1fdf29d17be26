"""Data-parallel training of one run in several processes, as torchrun starts them: each has a part of every batch.

With one process, the usual case, nothing here communicates. Rank 0 writes; the others only compute.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixersweep.errors import UserError
from mixersweep.processor import torchrun_number

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long processes wait for each other; rank 0 may be reading data."""


class World:
    """``size`` processes, of which this one has ``rank``; ``local_rank`` counts those on this machine."""

    def __init__(self) -> None:
        self.size = torchrun_number("WORLD_SIZE", 1)
        self.rank = torchrun_number("RANK", 0)
        self.local_rank = torchrun_number("LOCAL_RANK", 0)
        self.local_size = torchrun_number("LOCAL_WORLD_SIZE", 1)
        if self.size > 1 and not dist.is_initialized():
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
            if missing:
                raise UserError(
                    f"WORLD_SIZE={self.size}: {' and '.join(missing)} not set, which torchrun sets as well; "
                    "unset WORLD_SIZE to train in one process"
                )
            # values for the host go over gloo, so that asking the others never waits for a GPU
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device setting of this process: with ``auto`` or ``cuda`` each has a GPU of its own."""
        if self.size == 1 or asked not in ("auto", "cuda") or not torch.cuda.is_available():
            return asked
        if self.local_size > torch.cuda.device_count():
            raise UserError(
                f"device={asked}: {self.local_size} processes and {torch.cuda.device_count()} GPUs on this machine; "
                f"use torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        return f"cuda:{self.local_rank}"

    def broadcast(self, value: Any = None) -> Any:
        """Broadcast rank 0's value to all processes."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def max(self, value: int) -> int:
        """The maximum of the processes' values, which must not be negative."""
        if self.size == 1:
            return value
        box = torch.tensor(value)
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def gather(self, value: T) -> list[T]:
        """Gather the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def trained_together(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network wrapped in DistributedDataParallel, which averages gradients; with one process, as it is."""
        if self.size == 1:
            return network
        together = nn.parallel.DistributedDataParallel(
            network, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
        together.broadcast_buffers = False  # masks and permutations: the same everywhere
        return together

    def close(self) -> None:
        """Leave the process group, unless all of it is gloo's.

        Its end waits for threads, now and then for ever (torch 2.6), and the process leaves right after this anyway.
        """
        if self.size > 1 and dist.is_initialized() and dist.get_backend() != "gloo":
            dist.destroy_process_group()
