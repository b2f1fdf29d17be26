"""Batches: what a training run asks for, and the fast way to have it: all images on the device, as bytes.

The images are zero-padded once. A crop out of a padded image is the same strides from its first pixel on, wherever
that is. So all crops that there can be are one view of the bytes (``crops``), from which a batch takes its own by their
first pixels, and nothing waits for the device. Every random choice of an epoch is drawn beforehand from generators on
the CPU: each device sees the same.
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
    """One split of a data set, wherever its images are."""

    def __len__(self) -> int:
        """The images, over all ranks."""

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
        """One epoch: normalised images, float32 (B, channels, image_size, image_size), and labels, int64 (B,).

        Every image comes once, in an order of ``order_seed`` or, without it, as it stands; the last batch may be
        smaller. Image i gets the i-th augmentation of ``augment_seed`` whatever the order or, without it, none.
        ``batch_size`` is that of all ranks together, of which this one gets its share (``share_of``), perhaps no image
        of the last batch. From ``first_step`` on the batches are those of the whole epoch, without its work.
        """


def epoch_order(count: int, order_seed: int | None) -> Tensor:
    """The order of ``count`` images in an epoch, int64 (count,)."""
    if order_seed is None:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(order_seed))


def share_of(count: int, rank: int, world_size: int) -> Tensor:
    """Which places of a batch of ``count`` are a rank's, int64, ascending: each ``world_size``-th from either end.

    So the images at places i and count - 1 - i, which mixup mixes, are in one rank, whatever the number of ranks.
    """
    place = torch.arange(count)
    return place[torch.minimum(place, count - 1 - place) % world_size == rank]


def shares(
    epoch: Sequence[Tensor], batch_size: int, first_step: int, rank: int, world_size: int
) -> Iterator[list[Tensor]]:
    """What a rank has in each step, (B,) each, of tensors (N,) that stand in the order of an epoch."""
    count = len(epoch[0])
    for first in range(first_step * batch_size, count, batch_size):
        batch = [values[first : first + batch_size] for values in epoch]
        if world_size > 1:
            places = share_of(len(batch[0]), rank, world_size)
            batch = [values[places.to(values.device)] for values in batch]
        yield batch


class Finish:
    """What is done to a batch of bytes on the device: normalisation with ``mean`` and ``std``, of pixels in 0..1, a
    channel each, and erasing with a probability.
    """

    def __init__(
        self, image_size: int, mean: Sequence[float], std: Sequence[float], erasing: float, device: torch.device | str
    ) -> None:
        self.image_size, self.erasing, self.device = image_size, erasing, torch.device(device)
        self.mean = 255 * torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)  # of bytes
        self.std = 255 * torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

    def boxes(self, count: int, augment_seed: int | None) -> Boxes | None:
        """What is erased of ``count`` images in an epoch; None for nothing."""
        if augment_seed is None or not self.erasing:
            return None
        seed = derive(augment_seed, "erasing")
        return draw_boxes(count, self.erasing, len(self.mean), self.image_size, seed, self.device)

    def __call__(self, bytes_bcyx: Tensor, boxes: Boxes | None, which: Tensor | None) -> Tensor:
        """float32 (B, channels, size, size); ``which``, int64 (B,), says which boxes are theirs."""
        images = bytes_bcyx.float().sub_(self.mean).div_(self.std)
        return images if boxes is None or which is None else boxes.erase(images, which)


def split(
    labels: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and validation indices, both sorted: of each class with n images, round(share n) are for validation.

    ``labels`` is (N,); the seed decides which images. Raises ``UserError`` where a class would get no image on one of
    the two sides of a share above 0.
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
    """Images on a device and the batches of an epoch over them.

    The images are centred in zeros to ``image_size``, with ``crop_padding`` more on each side; an augmented image is a
    random crop of ``image_size`` out of that, with ``flip`` mirrored every other time, and with the probability
    ``erasing`` a box of it is noise. ``mean`` and ``std`` are one a channel, of pixels in 0..1. Raises ``UserError``
    where the images do not fit ``image_size``, ``mean`` or ``std``.
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
        self.which = torch.arange(count)  # of the images that lie there, which these are
        self.finish = Finish(image_size, mean, std, erasing, device)

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
        """One epoch, see ``Batches``; without augmentation an image is its centre."""
        order = epoch_order(len(self), order_seed).to(self.images.device)
        boxes = self.finish.boxes(len(self), augment_seed)
        drawn = [values.to(self.images.device) for values in self.draw(augment_seed)]
        epoch = [values[order] for values in (self.labels, *drawn)]
        for which, labels, start, *mirrored in shares([order, *epoch], batch_size, first_step, rank, world_size):
            yield self.finish(self.cropped(start, *mirrored), boxes, which), labels

    def cropped(self, start: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """The crops that begin at these places (B,), those ``mirrored`` with a 1: uint8 (B, channels, size, size)."""
        bytes_bcyx = self.crops.index_select(0, start)
        if mirrored is None:
            return bytes_bcyx
        both = torch.cat((bytes_bcyx, bytes_bcyx.flip(-1)))
        return both.index_select(0, torch.arange(len(start), device=start.device) + mirrored * len(start))

    def centres(self) -> Tensor:
        """The places in ``crops`` of the images as they are without augmentation, int64 (N,), on the CPU."""
        first = self.crop_padding
        places: Tensor = (self.which * self.channels * self.padded_size + first) * self.padded_size + first
        return places

    def draw(self, augment_seed: int | None) -> list[Tensor]:
        """The places in ``crops`` of the augmented images and, where any is mirrored, a 1 for each that is: int64 (N,),
        on the CPU. Image i has the i-th augmentation of the seed or, without one, none.
        """
        if augment_seed is None:
            return [self.centres()]
        count = len(self)
        generator = torch.Generator().manual_seed(augment_seed)
        row, column = torch.randint(2 * self.crop_padding + 1, (2, count), generator=generator)
        mirrored = [torch.randint(2, (count,), generator=generator)] if self.flip else []
        return [(self.which * self.channels * self.padded_size + row) * self.padded_size + column, *mirrored]

    def subset(self, which: Tensor) -> DeviceImages:
        """Some of the images, int64 (n,), in that order; they stay where they are."""
        part = copy.copy(self)
        part.which, part.labels = self.which[which], self.labels[which.to(self.labels.device)]
        return part

    def _crops(self) -> Tensor:
        """(places, channels, image_size, image_size): crops by the flat index of their first pixel, without a copy.

        Those that reach over an image's border are never asked for.
        """
        size, line = self.image_size, self.padded_size
        within = ((self.channels - 1) * line + size - 1) * line + size - 1  # from a crop's first pixel to its last
        places = max(0, self.images.numel() - within)
        return self.images.as_strided((places, self.channels, size, size), (1, line * line, line, 1))
