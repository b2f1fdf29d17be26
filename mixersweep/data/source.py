"""Data sets in memory: the source of their arrays, the one file that stores them, and their images.

The file is ``NAME.npz`` with uint8 ``train_images`` and ``test_images``, (N, size, size) or (N, channels, size, size),
and ``train_labels`` and ``test_labels``, (N,). Its sha256 stands beside it in ``NAME.npz.sha256``, as ``sha256sum``
writes it, or in the program for a file that ships with it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.uint8]]
Notify = Callable[[str], None]
Fetch = Callable[[Path, Path, Notify], Arrays]

ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The fixed time stamp of members of zip files, so that equal arrays make equal bytes."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes: uint8 (N, image_channels, native_size, native_size) and int64 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.NDArray[np.int64]) -> Images:
        """The images at ``indices``, int64 (n,), in that order; a copy."""
        return Images(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Source:
    """The source of a data set: ``fetch(folder, scratch, notify)`` returns its arrays.

    It reads the published files if a user put them into the data folder, else it downloads them into ``scratch``, an
    empty folder on the same disk. ``fetch`` is None for a data set that ships with the program, whose file has this
    ``sha256``. ``size_bytes`` is the approximate size of the file.
    """

    size_bytes: int
    fetch: Fetch | None = None
    sha256: str | None = None


class Damaged(Exception):
    """A data set's file is not as it was written; the message says why."""


def read(path: Path, sha256: str | None = None) -> Arrays:
    """Read the arrays of a file; raises ``Damaged`` unless it has the given sha256, or that in the file beside it."""
    _check(path, sha256)
    with np.load(path) as arrays:
        return dict(arrays)


def is_undamaged(path: Path) -> bool:
    """Whether the file exists and has the sha256 recorded in the file beside it."""
    try:
        _check(path)
    except Damaged:
        return False
    return True


def is_ready(path: Path, sha256: str | None = None) -> bool:
    """Whether the file and its checksum exist and it looks like a zip file; reads only a few bytes."""
    return zipfile.is_zipfile(path) and (sha256 is not None or _sidecar(path).is_file())


def write(path: Path, arrays: Arrays, scratch: Path) -> None:
    """Write the file and its checksum, each atomically, by way of ``scratch``, a folder on the same disk."""
    temporary = scratch / path.name
    write_npz(temporary, arrays)
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _sidecar(temporary).write_text(f"{digest}  {path.name}\n")
    for done, target in ((_sidecar(temporary), _sidecar(path)), (temporary, path)):
        with done.open("rb") as file:
            os.fsync(file.fileno())
        done.replace(target)


def write_npz(path: Path, arrays: Arrays, compression: int = zipfile.ZIP_STORED) -> None:
    """Write an npz file as ``numpy.savez`` does, but without the time, so that equal arrays make equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            member = zipfile.ZipInfo(f"{key}.npy", ZIP_TIME)
            member.compress_type = compression
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def split_images(arrays: Arrays) -> tuple[Images, Images]:
    """The training and the test images of a file's arrays."""
    return _images(arrays, "train"), _images(arrays, "test")


def _check(path: Path, sha256: str | None = None) -> None:
    """Raise ``Damaged`` unless the file has the given sha256, or that in the file beside it."""
    try:
        expected = sha256 or _sidecar(path).read_text().split()[0]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, IndexError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    if found != expected:
        raise Damaged(f"sha256 {found[:12]} instead of {expected[:12]}")


def _images(arrays: Arrays, part: str) -> Images:
    images: npt.NDArray[Any] = arrays[f"{part}_images"]
    return Images(images if images.ndim == 4 else images[:, None], arrays[f"{part}_labels"].astype(np.int64))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
