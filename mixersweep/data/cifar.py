"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32 x 32, of 10 and 100 classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixersweep.data.download import get_unpacked, reading
from mixersweep.data.source import Arrays, Notify, Source

SHA256 = {
    "cifar10": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar100": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}
"""The sha256 of the archives with the Python version."""


def fetcher(name: str, reader: str) -> Callable[[Path, Path, Notify], Arrays]:
    """Make the ``fetch`` function of one of the two; ``reader`` is the name of torchvision's class."""

    def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
        import torchvision.datasets

        cifar: Any = getattr(torchvision.datasets, reader)
        where = get_unpacked(name, cifar.base_folder, (cifar.url, cifar.tgz_md5, SHA256[name]), folder, scratch, notify)
        arrays = {}
        with reading(name, where / cifar.base_folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of how Python 2 pickled the arrays in these files
            for part in ("train", "test"):
                images = cifar(str(where), train=part == "train")
                arrays[f"{part}_images"] = np.ascontiguousarray(images.data.transpose(0, 3, 1, 2))
                arrays[f"{part}_labels"] = np.array(images.targets, dtype=np.uint8)
        return arrays

    return fetch


CIFAR10 = Source(size_bytes=184_381_000, fetch=fetcher("cifar10", "CIFAR10"))
CIFAR100 = Source(size_bytes=184_381_000, fetch=fetcher("cifar100", "CIFAR100"))
