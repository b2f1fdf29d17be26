"""Random erasing (Zhong et al. 2017, arXiv:1708.04896) of a whole batch at once, as timm's does it per image.

With some probability, a box with 2% to 33% of an image's area and an aspect ratio of 0.3 to 3.3 is replaced by normal
noise, independent for each pixel (timm's mode ``pixel``). Boxes are drawn for all images of an epoch beforehand; the
noise of a box is a slice of one long random vector, at a random offset for each image. So nothing depends on how images
are batched, and all devices see the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

AREA, LOG_RATIO = (0.02, 1 / 3), (math.log(0.3), -math.log(0.3))
ATTEMPTS = 10
NOISE_STARTS = 2**16
"""The number of offsets at which the noise of a box may begin."""


@dataclass(frozen=True)
class Boxes:
    """The boxes to erase in an epoch, each field int64 (N,), height 0 for none, and the vector of noise, float32."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    start: Tensor
    noise: Tensor

    def erase(self, images: Tensor, which: Tensor) -> Tensor:
        """Erase boxes in ``images``, float32 (B, channels, size, size); ``which``, int64 (B,), indexes the boxes.

        A CPU erases box by box; a GPU computes all pixels, since looking up the boxes would wait for the device.
        """
        return self.erase_each(images, which) if images.device.type == "cpu" else self.erase_together(images, which)

    def erase_each(self, images: Tensor, which: Tensor) -> Tensor:
        """Erase image by image, in place."""
        boxes = torch.stack([part[which] for part in (self.top, self.left, self.height, self.width, self.start)], 1)
        shape, count = images.shape[1:], images[:1].numel()
        for image, (top, left, height, width, start) in zip(images, boxes.tolist(), strict=True):
            if height:
                box = slice(None), slice(top, top + height), slice(left, left + width)
                image[box] = self.noise[start : start + count].view(shape)[box]
        return images

    def erase_together(self, images: Tensor, which: Tensor) -> Tensor:
        """Erase in the whole batch at once, without waiting for the device; returns new images."""
        pixel = torch.arange(images.shape[-1], device=images.device)

        def within(first: Tensor, length: Tensor) -> Tensor:
            first, length = first[which, None], length[which, None]
            return (pixel >= first) & (pixel < first + length)  # (B, size)

        rows, columns = within(self.top, self.height), within(self.left, self.width)
        box = (rows[:, :, None] & columns[:, None, :])[:, None]  # (B, 1, size, size)
        offset = torch.arange(images[0].numel() if len(images) else 0, device=images.device)
        noise = self.noise[self.start[which, None] + offset].view_as(images)
        return torch.where(box, noise, images)


def draw_boxes(count: int, probability: float, channels: int, size: int, seed: int, device: torch.device) -> Boxes:
    """Draw boxes for ``count`` images (channels, size, size), on the CPU so that all devices get the same."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    erased = uniform() < probability
    height = torch.zeros(count, dtype=torch.int64)
    width = torch.zeros(count, dtype=torch.int64)
    for _ in range(ATTEMPTS):
        area, ratio = uniform(*AREA) * size * size, uniform(*LOG_RATIO).exp()
        high, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        accepted = erased & (height == 0) & (high < size) & (wide < size)
        height, width = torch.where(accepted, high, height), torch.where(accepted, wide, width)
    top, left = ((uniform() * (size - length + 1)).long() for length in (height, width))
    start = torch.randint(NOISE_STARTS, (count,), generator=generator)
    noise = torch.randn(NOISE_STARTS + channels * size * size, generator=generator)
    return Boxes(*(tensor.to(device) for tensor in (top, left, height, width, start, noise)))
