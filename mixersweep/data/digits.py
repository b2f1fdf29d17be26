"""The 1,797 handwritten digits of scikit-learn, 8 x 8: the test part of UCI's optdigits (Alpaydin and Kaynak 1998).

This part has no published split. The file is ordered by writer, so the last 36 images of each class, mostly by writers
who do not occur in the others, are the test images here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mixersweep.data.source import Arrays, Notify, Source
from mixersweep.errors import UserError

TEST_IMAGES_PER_CLASS = 36
SHA256 = {
    "images": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "target": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
}
"""The sha256 of the grey levels 0..16, uint8 (1797, 8, 8), and of the classes, uint8 (1797,)."""


def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
    """Make the four arrays from the installed scikit-learn; grey level x becomes round(255 / 16 x).

    Raises ``UserError`` if scikit-learn is missing or its digits are not the published ones.
    """
    del folder, scratch
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data=digits: its images ship with scikit-learn, which is not installed; pip install 'mixersweep[digits]'"
        ) from error
    notify("digits: reading scikit-learn's")
    bunch = load_digits()
    levels, labels = bunch["images"].astype(np.uint8), bunch["target"].astype(np.uint8)
    for array, sha256 in ((levels, SHA256["images"]), (labels, SHA256["target"])):
        if hashlib.sha256(array.tobytes()).hexdigest() != sha256:
            raise UserError("data=digits: scikit-learn's digits are not the published ones (sha256 differs)")
    images = np.round(levels * (255 / 16)).astype(np.uint8)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[-TEST_IMAGES_PER_CLASS:]] = True
    return {
        "train_images": images[~test],
        "train_labels": labels[~test],
        "test_images": images[test],
        "test_labels": labels[test],
    }


SOURCE = Source(size_bytes=118_000, fetch=fetch)
