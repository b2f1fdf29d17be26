"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), whole and as the subset that ships here.

``fashion_mnist_10k.npz`` holds the first 1,000 training and 200 test images of each class, in the order of the
original files; ``scripts/make_fashion_mnist_10k.py`` makes it. Both are under the MIT licence of Zalando SE, see
``FASHION_MNIST_LICENSE``.
"""

from __future__ import annotations

from pathlib import Path

from mixersweep.data import idx
from mixersweep.data.source import Arrays, Notify, Source

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files, gzipped."""

SHA256 = {
    "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""The sha256 of the unpacked files."""


def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
    """Get the four arrays: from torchvision's layout in ``folder``, from Debian's package, or by download."""
    folders = [folder / "FashionMNIST" / "raw", DEBIAN_DIR]
    return idx.fetch(_files(), folders, scratch, notify)


def read_idx(folder: Path) -> Arrays:
    """Read the four arrays from the idx files in ``folder``: uint8 (N, 28, 28) and (N,)."""
    return idx.read(_files(), folder)


def _files() -> idx.PublishedFiles:
    return idx.PublishedFiles("fashion_mnist", "FashionMNIST", SHA256, "install Debian's package dataset-fashion-mnist")


WHOLE = Source(size_bytes=54_951_000, fetch=fetch)
SUBSET = Source(size_bytes=5_279_000, sha256="efefbe05b9d7eaf04f28ae39025070e3f555b25bf705ff9319bf8a7a4784fc6b")
