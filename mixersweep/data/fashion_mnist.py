"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), whole and as the subset that ships here.

``fashion_mnist_10k.npz`` holds the first 1,000 training and 200 test images of each class, in the order of the
original files; ``scripts/make_fashion_mnist_10k.py`` makes it. Both are under the MIT licence of Zalando SE, see
``FASHION_MNIST_LICENSE``.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import sys
from http.client import HTTPException
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixersweep.data.source import Arrays, Report, Source
from mixersweep.errors import UserError

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files, gzipped."""

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SHA256 = {
    "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the unpacked files: gzip writes a name and a time that differ from one place to another."""


def fetch(scratch: Path, report: Report) -> Arrays:
    """The four arrays, from Debian's package if it is installed, else downloaded into ``scratch`` by torchvision."""
    if all((DEBIAN_DIR / f"{file}.gz").is_file() for file in FILES.values()):
        report(f"fashion_mnist: reading {DEBIAN_DIR}")
        return read_idx(DEBIAN_DIR)
    report("fashion_mnist: downloading 31 MB")
    return read_idx(_download(scratch))


def read_idx(folder: Path) -> Arrays:
    """The four arrays out of the gzipped idx files in ``folder``: uint8 (N, 28, 28) and (N,).

    Raises ``UserError`` where a file is not the published one.
    """
    arrays = {}
    for key, name in FILES.items():
        path = folder / f"{name}.gz"
        try:
            content = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"data=fashion_mnist: {path} cannot be read ({error}); get it again") from error
        if hashlib.sha256(content).hexdigest() != SHA256[key]:
            raise UserError(f"data=fashion_mnist: {path} is not the published file (sha256 differs); get it again")
        arrays[key] = _idx(content)
    return arrays


def _idx(content: bytes) -> npt.NDArray[np.uint8]:
    """An idx file: two zeros, the type (8: uint8), the number of axes, their sizes as big-endian int32, the values."""
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _download(scratch: Path) -> Path:
    """The folder in ``scratch`` that holds the gzipped files afterwards."""
    from torchvision.datasets import FashionMNIST

    try:
        with contextlib.redirect_stdout(sys.stderr):
            FashionMNIST(str(scratch), download=True)
    except (OSError, EOFError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data=fashion_mnist: the download failed ({reason}); install Debian's package dataset-fashion-mnist, "
            "or prepare it where there is a network and copy fashion_mnist.npz and fashion_mnist.npz.sha256"
        ) from error
    return scratch / "FashionMNIST" / "raw"


WHOLE = Source(size_bytes=54_951_000, fetch=fetch)
SUBSET = Source(size_bytes=5_279_000, sha256="efefbe05b9d7eaf04f28ae39025070e3f555b25bf705ff9319bf8a7a4784fc6b")
