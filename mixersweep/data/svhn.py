"""Street View House Numbers (Netzer et al. 2011), cropped digits: 73,257 training and 26,032 test images, 32 x 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixersweep.data.download import get_published, reading
from mixersweep.data.source import Arrays, Notify, Source

SHA256 = {
    "train": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
    """Get the four arrays from the two .mat files in ``folder``, or by download; the digit 0, 10 there, is class 0."""
    from torchvision.datasets import SVHN

    arrays = {}
    for part, sha256 in SHA256.items():
        url, _, md5 = SVHN.split_list[part]
        path = get_published("svhn", url, md5, sha256, folder, scratch, notify)
        with reading("svhn", path):
            images = SVHN(str(path.parent), split=part)
        arrays[f"{part}_images"] = np.ascontiguousarray(images.data)
        arrays[f"{part}_labels"] = images.labels.astype(np.uint8)
    return arrays


SOURCE = Source(size_bytes=305_117_000, fetch=fetch)
