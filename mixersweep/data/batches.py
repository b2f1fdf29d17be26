"""Batches: all images stay on the device as bytes, and a batch is one gather.

The images are zero-padded once. A crop out of a padded image, plain or mirrored, is the same pattern of offsets from
its first pixel (``window``), so crop and flip of a batch are ``images[start + window]``, and nothing waits for the
device. Every random choice of an epoch is drawn beforehand from generators on the CPU: each device sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixersweep.data.source import Images
from mixersweep.errors import UserError


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
    random crop of ``image_size`` out of that and, with ``flip``, mirrored every other time. ``mean`` and ``std`` are
    one a channel, of pixels in 0..1. Raises ``UserError`` where the images do not fit ``image_size``, ``mean``
    or ``std``.
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
        self.mean = 255 * torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)  # of bytes
        self.std = 255 * torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

        self.padded_size = image_size + 2 * crop_padding
        self.images = torch.zeros(
            (count, channels, self.padded_size, self.padded_size), dtype=torch.uint8, device=device
        )
        first = crop_padding + (image_size - native_size) // 2
        inside = slice(first, first + native_size)
        self.images[:, :, inside, inside] = torch.tensor(images.images, device=device)
        self.window = self._window().to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, order_seed: int | None, augment_seed: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: normalised images, float32 (B, channels, image_size, image_size), and labels, int64 (B,).

        Every image comes once, in an order of ``order_seed`` or, without it, as it stands; the last batch may be
        smaller. Image i gets the i-th crop and flip of ``augment_seed`` whatever the order or, without it, the centre.
        """
        order, start, mirrored = self._draw(order_seed, augment_seed)
        labels = self.labels[order]
        shape = (-1, self.channels, self.image_size, self.image_size)
        pixels = self.images.view(-1)
        for first in range(0, len(self), batch_size):
            batch = slice(first, first + batch_size)
            where = start[batch, None] + self.window[mirrored[batch]]  # (B, channels * image_size**2)
            bytes_bcyx = pixels.index_select(0, where.view(-1)).view(shape)
            yield bytes_bcyx.float().sub_(self.mean).div_(self.std), labels[batch]

    def _draw(self, order_seed: int | None, augment_seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """On the device, each (N,): which image, the flat index of its crop's first pixel, and 1 if mirrored else 0."""
        count, margin = len(self), self.crop_padding
        order = torch.arange(count)
        if order_seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(order_seed))
        row = column = torch.full((count,), margin)
        mirrored = torch.zeros(count, dtype=torch.int64)
        if augment_seed is not None:
            generator = torch.Generator().manual_seed(augment_seed)
            row, column = torch.randint(2 * margin + 1, (2, count), generator=generator)
            if self.flip:
                mirrored = torch.randint(2, (count,), generator=generator)
        start = (torch.arange(count) * self.channels * self.padded_size + row) * self.padded_size + column
        device, index = self.images.device, self.window.dtype
        return order.to(device), start[order].to(device, index), mirrored[order].to(device)

    def _window(self) -> Tensor:
        """(2, channels * image_size**2): where a crop's pixels are from its first on, plain and mirrored.

        int32 while that counts all pixels, since the gather is then nearly twice as fast on a CPU.
        """
        channel, pixel = torch.arange(self.channels), torch.arange(self.image_size)
        lines = (channel[:, None] * self.padded_size + pixel) * self.padded_size
        plain, mirrored = (lines[:, :, None] + columns for columns in (pixel, pixel.flip(0)))
        window = torch.stack((plain.flatten(), mirrored.flatten()))
        return window.int() if self.images.numel() < 2**31 else window
