"""Benchmarks of loading alone: an epoch of batches against a DataLoader with torchvision's transforms on PIL images.

Both get the same images in memory, noise in the shape of CIFAR-10, and return the same kind of batch. The DataLoader
has one worker per core and keeps them over the epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mixersweep.bench.harness import Case
from mixersweep.compose import config_of
from mixersweep.config import Config
from mixersweep.data import Images
from mixersweep.data.splits import batches_of
from mixersweep.data.stream import choose_workers

BATCH, SIZE, CHANNELS = 128, 32, 3


@dataclass(frozen=True)
class Ours:
    """An epoch of ``images`` images from mixersweep's own loader."""

    images: int
    augment: str

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        config = cifar_config(self.augment)
        batches = batches_of(config, some_images(self.images), device, workers=choose_workers("auto"))

        def epoch() -> None:
            for _ in batches.batches(BATCH, 0, 0):
                pass

        return epoch


@dataclass(frozen=True)
class Theirs:
    """The same epoch from a DataLoader."""

    images: int
    augment: str

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        loader = dataloader(some_images(self.images), cifar_config(self.augment), device)

        def epoch() -> None:
            for images, labels in loader:
                images.to(device, non_blocking=True)
                labels.to(device, non_blocking=True)

        return epoch


def loader_cases(everything: bool) -> Iterator[Case]:
    """Yield the comparisons for crop and flip and for AutoAugment; ``everything`` takes epochs of CIFAR-10's size."""
    for name, augment, images in [
        ("loader_vs_dataloader", "crop_flip", 50_000 if everything else 12_800),
        ("stream_vs_dataloader", "auto_augment", 50_000 if everything else 3_840),
    ]:
        sizes = {
            **dict.fromkeys(("model", "width", "connections")),  # no network is involved
            "augment": augment,
            "images": images,
            "image_size": SIZE,
            "image_channels": CHANNELS,
            "batch_size": BATCH,
            "workers": choose_workers("auto"),
        }
        yield Case(name, sizes, Ours(images, augment), Theirs(images, augment))


def cifar_config(augment: str) -> Config:
    """Return the config of a run on CIFAR-10."""
    return config_of(["data=cifar10", f"augment={augment}"])


@cache
def some_images(count: int) -> Images:
    """Return ``count`` images of noise in the shape of CIFAR-10."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, CHANNELS, SIZE, SIZE), dtype=np.uint8)
    return Images(pixels, generator.integers(0, 10, count))


def dataloader(images: Images, config: Config, device: torch.device) -> DataLoader[Any]:
    """Return the DataLoader of a usual training script: shuffled, one worker per core, transforms on PIL images."""
    augment, data = config.augment, config.data
    chain: list[Any] = [transforms.RandomCrop(config.image_size, padding=augment.crop_padding)]
    chain += [transforms.RandomHorizontalFlip()] if augment.flip else []
    chain += [transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)] if augment.policy != "none" else []
    chain += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return DataLoader(
        _Pictures(images, transforms.Compose(chain)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=choose_workers("auto"),
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


class _Pictures(Dataset[Any]):
    """Images held and returned as torchvision's ``CIFAR10`` does."""

    def __init__(self, images: Images, transform: Any) -> None:
        self._images = np.ascontiguousarray(images.images.transpose(0, 2, 3, 1))
        self._labels, self._transform = images.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]
