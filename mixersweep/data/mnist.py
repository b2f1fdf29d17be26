"""MNIST (LeCun, Cortes and Burges 1998): 60,000 training and 10,000 test images of handwritten digits, 28 x 28."""

from __future__ import annotations

from pathlib import Path

from mixersweep.data import idx
from mixersweep.data.source import Arrays, Notify, Source

SHA256 = {
    "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The sha256 of the unpacked files."""


def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
    """Get the four arrays: from torchvision's layout in ``folder``, or by download."""
    raw = folder / "MNIST" / "raw"
    otherwise = f"put {', '.join(idx.FILES.values())} into {raw}"
    return idx.fetch(idx.PublishedFiles("mnist", "MNIST", SHA256, otherwise), [raw], scratch, notify)


SOURCE = Source(size_bytes=54_951_000, fetch=fetch)
