"""The three splits of a run's data set, as batches: the interface between data and training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixersweep.config import Config
from mixersweep.data import Folder, Images, find, folders, load
from mixersweep.data.batches import Batches, DeviceImages, NormaliseAndErase, split
from mixersweep.data.folders import Tree
from mixersweep.data.stream import Stream, StreamedSplit, Workers
from mixersweep.data.views import View, fit_all
from mixersweep.errors import UserError
from mixersweep.seeds import seed_of


@dataclass(frozen=True)
class Splits:
    """Training, validation (possibly empty) and test images; ``close`` ends the worker processes that read them."""

    train: Batches
    validation: Batches
    test: Batches
    workers: Workers | None = None

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self.workers is not None:
            self.workers.close()


def open_splits(config: Config, device: torch.device, *, workers: int = 0) -> Splits:
    """Open the splits of ``config.data``, which must be on this machine; nothing is downloaded.

    Images in memory are put on ``device`` as uint8. Images that are files, or are augmented one by one, are read by
    ``workers`` processes (``stream.choose_workers``; 0: by this one); the batches are the same for any number. Raises
    ``DataMissing`` or ``UserError`` if the data are missing, damaged, or do not match the settings.
    """
    train, test = _read(config)
    train_indices, validation_indices = split(train.labels, config.validation, seed_of(config, "split"))
    splits = {"train": train.subset(train_indices), "validation": train.subset(validation_indices), "test": test}
    streamed = [name for name, images in splits.items() if _is_streamed(config, images, training=name == "train")]
    pool = Workers([_streamed_split(config, splits[name]) for name in streamed], workers, device) if streamed else None

    def batches(name: str) -> Batches:
        if pool is None or name not in streamed:
            return _on_device(config, splits[name], device)
        return Stream(pool, streamed.index(name), splits[name], _normalise_and_erase(config, device))

    return Splits(batches("train"), batches("validation"), batches("test"), pool)


def share_splits(configs: Sequence[Config], device: torch.device) -> list[Splits]:
    """The splits of several runs whose data settings differ only in seeds; all share one copy of the images.

    Raises what ``open_splits`` does. Images that are read one by one cannot be shared.
    """
    train, test = _read(configs[0])
    images, tested = _on_device(configs[0], train, device), _on_device(configs[0], test, device)
    shared = []
    for config in configs:
        chosen, withheld = (
            images.subset(torch.from_numpy(side))
            for side in split(train.labels, config.validation, seed_of(config, "split"))
        )
        shared.append(Splits(chosen, withheld, tested))
    return shared


def _read(config: Config) -> tuple[Images | Tree, Images | Tree]:
    """Read the training and the test images of a data set, checked against the settings."""
    source, data_dir = find(config.data.name), Path(config.data_dir)
    train: Images | Tree
    test: Images | Tree
    if isinstance(source, Folder):
        root = folders.root_of(config.data.name, data_dir, config.data.root)
        train, test = folders.read_tree(config.data.name, source, root)
        folders.check(root, dataclasses.asdict(config.data), train, test)
    else:
        train, test = load(config.data.name, data_dir)
        _check(config, train, test)
    return train, test


def batches_of(config: Config, images: Images, device: torch.device, *, workers: int = 0) -> Batches:
    """Training batches of images in memory, augmented as ``config`` says, as ``open_splits`` would make them."""
    if not _is_streamed(config, images, training=True):
        return _on_device(config, images, device)
    return Stream(
        Workers([_streamed_split(config, images)], workers, device), 0, images, _normalise_and_erase(config, device)
    )


def _is_streamed(config: Config, images: Images | Tree, *, training: bool) -> bool:
    """Whether images are read and augmented one by one by workers, and not held on the device."""
    per_image = config.augment.policy != "none" or config.augment.random_resized_crop is not None
    return isinstance(images, Tree) or (training and per_image)


def _normalise_and_erase(config: Config, device: torch.device) -> NormaliseAndErase:
    return NormaliseAndErase(config.image_size, config.data.mean, config.data.std, config.augment.erasing, device)


def _on_device(config: Config, images: Images | Tree, device: torch.device) -> DeviceImages:
    assert isinstance(images, Images)
    return DeviceImages(
        fit_all(images, config.data, config.image_size),
        image_size=config.image_size,
        crop_padding=config.augment.crop_padding,
        flip=config.augment.flip,
        mean=config.data.mean,
        std=config.data.std,
        device=device,
        erasing=config.augment.erasing,
    )


def _streamed_split(config: Config, images: Images | Tree) -> StreamedSplit:
    """A split for the workers; images in memory are resized once, unless crops of the originals are wanted."""
    data = config.data
    if isinstance(images, Images) and config.augment.random_resized_crop is None:
        images, data = fit_all(images, data, config.image_size), dataclasses.replace(data, fit="pad")
    return StreamedSplit(data.name, images, View(data, config.augment, config.image_size))


def _check(config: Config, train: Images, test: Images) -> None:
    """Raise ``UserError`` if the images do not match the settings, from which the network was planned."""
    data = config.data
    found = {
        "native_size": train.images.shape[-1],
        "image_channels": train.images.shape[1],
        "train_images": len(train),
        "test_images": len(test),
    }
    for fact, value in found.items():
        if getattr(data, fact) != value:
            raise UserError(
                f"data.{fact}={getattr(data, fact)}: the images of {data.name} have {value}; set it to that"
            )
    classes = int(max(np.max(train.labels), np.max(test.labels))) + 1
    if data.classes < classes:
        raise UserError(f"data.classes={data.classes}: {data.name} has labels up to {classes - 1}; use {classes}")
