"""Resize a picture to ``image_size`` pixels: plainly for evaluation, with augmentation for training.

This works on one picture at a time, with the transforms of torchvision and timm on PIL images, for what cannot be done
to a whole batch on the device. They draw from the global random states of torch, Python and NumPy, which are seeded for
each image (``seeding_restored``).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mixersweep.config.schema import Augment, Data
from mixersweep.data.source import Images

Picture = Image.Image
Transform = Callable[[Picture], Picture]

CHUNK = 1000


class View:
    """The transforms of a picture: ``plain`` and ``augmented`` return uint8 (channels, image_size, image_size)."""

    def __init__(self, data: Data, augment: Augment, image_size: int) -> None:
        from torchvision.transforms import v2  # takes a second to import, which images on the device do without

        self.data, self.image_size = data, image_size
        self.grey = data.image_channels == 1
        self.transforms: list[Transform] = []
        if augment.random_resized_crop is None:
            self.transforms.append(self._fit)
            if augment.crop_padding:
                self.transforms.append(v2.RandomCrop(image_size, padding=augment.crop_padding))
        else:
            self.transforms.append(_random_resized_crop(image_size, augment.random_resized_crop))
        if augment.flip:
            self.transforms.append(v2.RandomHorizontalFlip())
        if augment.policy != "none":
            self.policy = _policy(augment, data.mean, image_size)
            self.transforms.append(self._with_policy)

    def plain(self, picture: Picture) -> Tensor:
        """The picture as in evaluation, without anything random."""
        return self._bytes(self._fit(picture))

    def augmented(self, picture: Picture) -> Tensor:
        """The picture as in training, augmented; draws from the global random states."""
        for transform in self.transforms:
            picture = transform(picture)
        return self._bytes(picture)

    def _fit(self, picture: Picture) -> Picture:
        fitted: Picture = fit(picture, self.data, self.image_size)
        return fitted

    def _with_policy(self, picture: Picture) -> Picture:
        """Apply the policy, which needs colours: grey pictures are converted to RGB and back."""
        return self.policy(picture.convert("RGB")).convert("L") if self.grey else self.policy(picture)

    def _bytes(self, picture: Picture) -> Tensor:
        pixels = np.array(picture)  # (size, size) or (size, size, 3)
        return torch.from_numpy(pixels[None] if self.grey else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def to_8_bits(picture: Picture) -> Picture:
    """Convert a picture to 8 bits per channel; of 16 bits the upper 8 are taken, as Pillow does for 16-bit colours.

    Pillow's ``convert`` would turn all grey values above 255 white. Raises ``ValueError`` if the range of values is
    unknown: for 32 bits and for floating point.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {picture.mode}, whose range is not known; store 8 or 16 bits")
    return picture


def fit(image: Any, data: Data, image_size: int) -> Any:
    """Resize, crop or pad a picture, or uint8 (..., size, size), to ``image_size`` pixels, as ``data.fit`` says."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as f

    mode = InterpolationMode[data.interpolation.upper()]
    size = f.get_size(image)  # height, width
    if data.fit == "resize":
        return f.resize(image, [image_size, image_size], mode, antialias=True)
    if data.fit == "crop":
        resized = f.resize(image, [max(image_size, round(image_size / data.crop_share))], mode, antialias=True)
        return f.center_crop(resized, [image_size, image_size])
    if size == [image_size, image_size]:
        return image
    top, left = ((image_size - side) // 2 for side in size)
    return f.pad(image, [left, top, image_size - size[1] - left, image_size - size[0] - top])


def fit_all(images: Images, data: Data, image_size: int) -> Images:
    """Resize or crop all images once, on the CPU so that all devices see the same; with ``pad`` they are unchanged."""
    if data.fit == "pad" or not len(images):
        return images
    chunks = [
        fit(torch.from_numpy(images.images[first : first + CHUNK]), data, image_size)
        for first in range(0, len(images), CHUNK)
    ]
    return Images(torch.cat(chunks).numpy(), images.labels)


@contextlib.contextmanager
def seeding_restored() -> Iterator[Callable[[int], None]]:
    """A context with a function that seeds the global states of torch (CPU), Python and NumPy; restored after."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield _seed_all
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the GPU's too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def _random_resized_crop(image_size: int, share: float) -> Transform:
    from timm.data.transforms import RandomResizedCropAndInterpolation

    crop: Transform = RandomResizedCropAndInterpolation(image_size, scale=(share, 1.0), interpolation="random")  # type: ignore[no-untyped-call]
    return crop


def _policy(augment: Augment, mean: list[float], image_size: int) -> Transform:
    if augment.policy == "auto_augment":
        from torchvision.transforms import v2

        policy: Transform = v2.AutoAugment(v2.AutoAugmentPolicy[augment.auto_augment.upper()])
        return policy
    from timm.data import auto_augment

    grey_level = [min(255, round(255 * value)) for value in mean]
    colour = tuple(grey_level * 3 if len(grey_level) == 1 else grey_level)
    settings = {"translate_const": int(image_size * 0.45), "img_mean": colour}  # as timm's own factory sets them
    rand_augment: Any = auto_augment.rand_augment_transform(augment.rand_augment, settings)
    for operation in rand_augment.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    chosen: Transform = rand_augment
    return chosen


def _posterize(picture: Picture, bits: int, **_: object) -> Picture:
    """timm's posterize, also for 0 bits, which its recipe asks for and Pillow 13 refuses: the result is black."""
    if bits >= 8:
        return picture
    return ImageOps.posterize(picture, bits) if bits > 0 else Image.new(picture.mode, picture.size)
