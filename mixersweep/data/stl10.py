"""The labelled part of STL-10 (Coates, Ng and Lee 2011): 5,000 training and 8,000 test images, 96 x 96, 10 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixersweep.data.download import get_unpacked, reading
from mixersweep.data.source import Arrays, Notify, Source

SHA256 = "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"
"""The sha256 of the archive with the binary files."""


def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
    """Get the four arrays: from ``stl10_binary`` or its archive in ``folder``, or by download (2.6 GB)."""
    from torchvision.datasets import STL10

    class Labelled(STL10):  # type: ignore[misc]
        """torchvision's reader without the unlabelled images, which a user may have left out."""

        train_list = STL10.train_list[:2]

    archive = STL10.url, STL10.tgz_md5, SHA256
    where = get_unpacked("stl10", STL10.base_folder, archive, folder, scratch, notify)
    arrays = {}
    with reading("stl10", where / STL10.base_folder):
        for part in ("train", "test"):
            images = Labelled(str(where), split=part)
            arrays[f"{part}_images"] = np.ascontiguousarray(images.data)
            arrays[f"{part}_labels"] = np.asarray(images.labels, dtype=np.uint8)
    return arrays


SOURCE = Source(size_bytes=359_438_000, fetch=fetch)
