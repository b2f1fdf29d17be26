"""Measurements at initialization: the rank of the features that the head reads, and the number of connections drawn."""

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

MIN_IMAGES, MAX_IMAGES = 256, 1024
"""The bounds on the number of training images that the rank is measured on, which is twice that of the features."""

BATCH_SIZE = 64
"""The number of images in one forward pass."""


def at_start(run: Run, images: Batches) -> dict[str, Any]:
    """Measure ``connections_drawn`` and ``readout_rank``, as the record has them, on the initial network.

    The network is built anew from its seeds, on the CPU, so the values do not depend on where or how often the run was
    resumed.
    """
    network = build(run.config, run.architecture)
    start_from(network, run.config.model)
    choose_storage(network, "sparse", torch.device("cpu"), BATCH_SIZE)
    return {"connections_drawn": connections_drawn(network), "readout_rank": readout_rank(network, run, images)}


def connections_drawn(network: nn.Module) -> float | None:
    """The mean number of nonzeros per mask, None if there are none; ``model.mask=bernoulli`` makes it random."""
    masks = [layer.connections for layer in mixing_maps(network).values() if isinstance(layer, SparseWeights)]
    return sum(masks) / len(masks) if masks else None


def readout_rank(network: nn.Module, run: Run, images: Batches) -> int | None:
    """The numerical rank of the head's centred inputs over training images without augmentation.

    Singular values below float32's precision, relative to the largest, do not count. The rank is less than the number
    of images; None if there are no training images.
    """
    wanted = max(MIN_IMAGES, 2 * (run.architecture.readout_dimension or 0))
    size = min(MAX_IMAGES, wanted, len(images))
    if not size:
        return None
    order = derive(seed_of(run.config, "order"), "readout")
    last = len(images) // size - 1  # the last whole batch: workers would read ahead of any other
    chosen, _ = next(iter(images.batches(size, order, None, first_step=last)))
    read = torch.cat([_collect_head_inputs(network, some) for some in chosen.cpu().split(BATCH_SIZE)]).double()
    values = torch.linalg.svdvals(read - read.mean(0))
    least = max(read.shape) * torch.finfo(torch.float32).eps
    return int((values > least * values.max()).sum()) if _has_variation(read, values) else 0


def _has_variation(read: Tensor, values: Tensor) -> bool:
    """Whether the features differ between images by more than rounding errors."""
    return bool(values.max() > max(read.shape) * torch.finfo(torch.float32).eps * torch.linalg.vector_norm(read))


@torch.no_grad()
def _collect_head_inputs(network: nn.Module, images: Tensor) -> Tensor:
    """The features that the head reads in eval mode, (B, features)."""
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
