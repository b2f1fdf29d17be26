"""Batches of images: the interface (``Batches``), and its fast implementation with all images on the device as uint8.

The images are zero-padded once. Every crop of a padded image has the same strides from its first pixel on, so all
possible crops form one strided view of the bytes (``crops``). A batch gathers its crops from it by the indices of their
first pixels, without waiting for the device. All random choices of an epoch are drawn beforehand on the CPU, so they
are the same on every device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixersweep.data.erasing import Boxes, draw_boxes
from mixersweep.data.source import Images
from mixersweep.errors import UserError
from mixersweep.seeds import derive


class Batches(Protocol):
    """The interface of one split of a data set, whose images may be on the device or read from files."""

    def __len__(self) -> int:
        """The number of images, over all ranks."""

    def batches(
        self,
        batch_size: int,
        order_seed: int | None,
        augment_seed: int | None,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch: normalised images, float32 (B, channels, image_size, image_size), and labels, int64 (B,).

        Every image comes once, in the random order of ``order_seed`` or, if None, in that of the data set; the last
        batch may be smaller. Image i gets the i-th augmentation of ``augment_seed``, whatever the order, or none if it
        is None. ``batch_size`` is that of all ranks together, of which this one gets its part (``rank_positions``),
        perhaps no image of the last batch. The batches before ``first_step`` are skipped without being computed.
        """


def epoch_order(count: int, order_seed: int | None) -> Tensor:
    """The order of ``count`` images in an epoch, int64 (count,): a random permutation, or 0, 1, ... without a seed."""
    if order_seed is None:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(order_seed))


def rank_positions(count: int, rank: int, world_size: int) -> Tensor:
    """The positions, in a batch of ``count`` images, of those that a rank computes: int64, ascending.

    These are every ``world_size``-th from both ends, so that images i and count - 1 - i, which mixup mixes, are in the
    same rank, whatever the number of ranks.
    """
    position = torch.arange(count)
    return position[torch.minimum(position, count - 1 - position) % world_size == rank]


def rank_batches(
    epoch: Sequence[Tensor], batch_size: int, first_step: int, rank: int, world_size: int
) -> Iterator[list[Tensor]]:
    """Yield a rank's part of each batch, tensors (B,), from tensors (N,) in the order of an epoch."""
    count = len(epoch[0])
    for first in range(first_step * batch_size, count, batch_size):
        batch = [values[first : first + batch_size] for values in epoch]
        if world_size > 1:
            positions = rank_positions(len(batch[0]), rank, world_size)
            batch = [values[positions.to(values.device)] for values in batch]
        yield batch


class NormaliseAndErase:
    """The last steps for a batch of uint8 images, on the device: normalisation and random erasing.

    ``mean`` and ``std`` have one value per channel, for pixels in 0..1; ``erasing`` is a probability.
    """

    def __init__(
        self, image_size: int, mean: Sequence[float], std: Sequence[float], erasing: float, device: torch.device | str
    ) -> None:
        self.image_size, self.erasing, self.device = image_size, erasing, torch.device(device)
        self.mean = 255 * torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)  # of bytes
        self.std = 255 * torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

    def boxes(self, count: int, augment_seed: int | None) -> Boxes | None:
        """Draw the boxes to erase from ``count`` images in an epoch; None without augmentation or erasing."""
        if augment_seed is None or not self.erasing:
            return None
        seed = derive(augment_seed, "erasing")
        return draw_boxes(count, self.erasing, len(self.mean), self.image_size, seed, self.device)

    def __call__(self, bytes_bcyx: Tensor, boxes: Boxes | None, which: Tensor | None) -> Tensor:
        """Normalise and erase: uint8 to float32, (B, channels, size, size); ``which``, int64 (B,), selects boxes."""
        images = bytes_bcyx.float().sub_(self.mean).div_(self.std)
        return images if boxes is None or which is None else boxes.erase(images, which)


def split(
    labels: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split into training and validation indices, both sorted: of n images of a class, round(share n) validate.

    ``labels`` is (N,); the seed decides which images. Raises ``UserError`` if ``share`` is above 0 and a class would
    have no image in one of the two.
    """
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(share * len(members))
        if share > 0 and not 0 < count < len(members):
            raise UserError(
                f"validation={share:g}: of the {len(members)} training images of class {label} it would take {count}; "
                "use 0, or a share nearer to 0.5"
            )
        held_out[generator.permutation(members)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class DeviceImages:
    """A split of a data set (``Batches``) whose images are all on a device, as uint8.

    The images are zero-padded to ``image_size``, centred, and by ``crop_padding`` more on each side. An augmented image
    is a random crop of ``image_size`` pixels out of that, mirrored with probability 1/2 if ``flip``, in which a box is
    replaced by noise with probability ``erasing``. ``mean`` and ``std`` have one value per channel, for pixels in 0..1.
    Raises ``UserError`` if the images do not fit ``image_size``, ``mean`` or ``std``.
    """

    def __init__(
        self,
        images: Images,
        image_size: int,
        crop_padding: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        erasing: float = 0.0,
    ) -> None:
        count, channels, native_size, _ = images.images.shape
        if image_size < native_size:
            raise UserError(f"image_size={image_size}: the images have {native_size} pixels; use {native_size} or more")
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(f"data.{key}={list(values)}: {len(values)} values for images of {channels} channels")
        self.image_size, self.channels = image_size, channels
        self.crop_padding, self.flip = crop_padding, flip
        self.labels = torch.tensor(images.labels, device=device)  # (N,)
        self.indices = torch.arange(count)  # of the images that lie there, which these are
        self.normalise_and_erase = NormaliseAndErase(image_size, mean, std, erasing, device)

        self.padded_size = image_size + 2 * crop_padding
        self.images = torch.zeros(
            (count, channels, self.padded_size, self.padded_size), dtype=torch.uint8, device=device
        )
        first = crop_padding + (image_size - native_size) // 2
        inside = slice(first, first + native_size)
        self.images[:, :, inside, inside] = torch.tensor(images.images, device=device)
        self.crops = self._crops()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        order_seed: int | None,
        augment_seed: int | None,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch, see ``Batches``; without augmentation an image is the central crop."""
        order = epoch_order(len(self), order_seed).to(self.images.device)
        boxes = self.normalise_and_erase.boxes(len(self), augment_seed)
        drawn = [values.to(self.images.device) for values in self.draw(augment_seed)]
        epoch = [values[order] for values in (self.labels, *drawn)]
        for which, labels, start, *mirrored in rank_batches([order, *epoch], batch_size, first_step, rank, world_size):
            yield self.normalise_and_erase(self.cropped(start, *mirrored), boxes, which), labels

    def cropped(self, start: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """The crops at indices ``start`` (B,), mirrored where ``mirrored`` is 1: uint8 (B, channels, size, size)."""
        bytes_bcyx = self.crops.index_select(0, start)
        if mirrored is None:
            return bytes_bcyx
        both = torch.cat((bytes_bcyx, bytes_bcyx.flip(-1)))
        return both.index_select(0, torch.arange(len(start), device=start.device) + mirrored * len(start))

    def centre_crops(self) -> Tensor:
        """The indices in ``crops`` of the images without augmentation, int64 (N,), on the CPU."""
        first = self.crop_padding
        first_pixels: Tensor = (self.indices * self.channels * self.padded_size + first) * self.padded_size + first
        return first_pixels

    def draw(self, augment_seed: int | None) -> list[Tensor]:
        """Draw an epoch's augmentation: indices in ``crops`` and, with ``flip``, 1 for each mirrored image.

        Each is int64 (N,), on the CPU. Image i has the i-th augmentation of the seed; without a seed there is none.
        """
        if augment_seed is None:
            return [self.centre_crops()]
        count = len(self)
        generator = torch.Generator().manual_seed(augment_seed)
        row, column = torch.randint(2 * self.crop_padding + 1, (2, count), generator=generator)
        mirrored = [torch.randint(2, (count,), generator=generator)] if self.flip else []
        return [(self.indices * self.channels * self.padded_size + row) * self.padded_size + column, *mirrored]

    def subset(self, which: Tensor) -> DeviceImages:
        """The images at indices ``which``, int64 (n,), in that order; they share memory with these."""
        part = copy.copy(self)
        part.indices, part.labels = self.indices[which], self.labels[which.to(self.labels.device)]
        return part

    def _crops(self) -> Tensor:
        """All crops, indexed by their first pixel: a view (pixels, channels, image_size, image_size) without a copy.

        It includes crops that extend beyond an image's border, which are never used.
        """
        size, line = self.image_size, self.padded_size
        within = ((self.channels - 1) * line + size - 1) * line + size - 1  # from a crop's first pixel to its last
        count = max(0, self.images.numel() - within)
        return self.images.as_strided((count, self.channels, size, size), (1, line * line, line, 1))
