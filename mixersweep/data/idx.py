"""MNIST and its like: four idx files, read from where a user or a package put them, or downloaded by torchvision."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixersweep.data.download import downloading
from mixersweep.data.source import Arrays, Notify
from mixersweep.errors import UserError

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class PublishedFiles:
    """The four files of a data set: torchvision's class, their sha256, and a remedy if the download fails.

    The sha256 are of the unpacked files, since gzip files also hold a name and a time, which vary.
    """

    name: str
    reader: str
    sha256: Mapping[str, str]
    remedy: str


def fetch(files: PublishedFiles, folders: Sequence[Path], scratch: Path, notify: Notify) -> Arrays:
    """Get the four arrays from the first folder that has all four files, else by download into ``scratch``.

    Raises ``UserError`` if a file is not the published one or the download fails.
    """
    for folder in folders:
        if all(_path(folder, file) for file in FILES.values()):
            notify(f"{files.name}: reading {folder}")
            return read(files, folder)
    notify(f"{files.name}: downloading about 30 MB")
    with downloading(files.name, files.remedy):
        import torchvision.datasets

        getattr(torchvision.datasets, files.reader)(str(scratch), download=True)
    return read(files, scratch / files.reader / "raw")


def read(files: PublishedFiles, folder: Path) -> Arrays:
    """Read the four arrays from the idx files in ``folder``, gzipped or not: uint8 (N, size, size) and (N,).

    Raises ``UserError`` if a file is not the published one.
    """
    name, arrays = files.name, {}
    for key, file in FILES.items():
        path = _path(folder, file) or folder / file
        try:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"data={name}: {path} cannot be read ({error}); get it again") from error
        if hashlib.sha256(content).hexdigest() != files.sha256[key]:
            raise UserError(f"data={name}: {path} is not the published file (sha256 differs); get it again")
        arrays[key] = _parse_idx(content)
    return arrays


def _path(folder: Path, file: str) -> Path | None:
    found = [path for path in (folder / file, folder / f"{file}.gz") if path.is_file()]
    return found[0] if found else None


def _parse_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """Parse an idx file: two zeros, the type (8: uint8), the number of axes, their sizes (big-endian int32), values."""
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
