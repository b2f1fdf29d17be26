"""What a network is before the first step: the rank of what its head reads, and the connections that were drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixersweep.data.batches import Batches
from mixersweep.layers import GroupReadout, SparseWeights
from mixersweep.models import build
from mixersweep.models.branches import mixing_maps
from mixersweep.models.mlp import choose_storage
from mixersweep.models.timm import start_from
from mixersweep.runs import Run
from mixersweep.seeds import derive, seed_of

FEWEST, MOST = 256, 1024
"""Training images that it is measured on: twice as many as there are features, within these bounds."""

AT_ONCE = 64
"""Images in one forward pass."""


def at_start(run: Run, images: Batches) -> dict[str, Any]:
    """``connections_drawn`` and ``readout_rank`` of a record.

    They are of the network as the seeds draw it, whose weights may have moved since: it is built once more, on the CPU,
    so that they are the same wherever and however often a run goes on.
    """
    network = build(run.config, run.architecture)
    start_from(network, run.config.model)
    choose_storage(network, "sparse", torch.device("cpu"), AT_ONCE)
    return {"connections_drawn": connections_drawn(network), "readout_rank": readout_rank(network, run, images)}


def connections_drawn(network: nn.Module) -> float | None:
    """The mean nonzeros of the masks, where there are masks; ``model.mask=bernoulli`` draws how many there are."""
    masks = [layer.connections for layer in mixing_maps(network).values() if isinstance(layer, SparseWeights)]
    return sum(masks) / len(masks) if masks else None


def readout_rank(network: nn.Module, run: Run, images: Batches) -> int | None:
    """The numerical rank of what the head reads of training images without augmentation, their mean taken away.

    Singular values below float32's precision of the largest are none. It is at most one less than the images, and None
    where there are none to train on.
    """
    wanted = max(FEWEST, 2 * (run.architecture.readout_dimension or 0))
    size = min(MOST, wanted, len(images))
    if not size:
        return None
    order = derive(seed_of(run.config, "order"), "readout")
    last = len(images) // size - 1  # the last whole batch: workers would read ahead of any other
    chosen, _ = next(iter(images.batches(size, order, None, first_step=last)))
    read = torch.cat([_read_by_head(network, some) for some in chosen.cpu().split(AT_ONCE)]).double()
    values = torch.linalg.svdvals(read - read.mean(0))
    least = max(read.shape) * torch.finfo(torch.float32).eps
    return int((values > least * values.max()).sum()) if _varies(read, values) else 0


def _varies(read: Tensor, values: Tensor) -> bool:
    """Whether features differ between images by more than rounding does."""
    return bool(values.max() > max(read.shape) * torch.finfo(torch.float32).eps * torch.linalg.vector_norm(read))


@torch.no_grad()
def _read_by_head(network: nn.Module, images: Tensor) -> Tensor:
    """(B, features), of a network in evaluation mode."""
    kept: list[Tensor] = []

    def keep(head: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        (x,) = inputs
        if isinstance(head, GroupReadout):
            x = head.features(x if options.get("features_first") else x.t()).t()
        kept.append(x)

    hook = network.get_submodule("head").register_forward_pre_hook(keep, with_kwargs=True)
    try:
        network.eval()(images)
    finally:
        hook.remove()
    return kept[0]
