"""Stripes: 8 x 8 grey images of noisy stripes in four directions, drawn from a seed, so that nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixersweep.data.source import Arrays, Notify, Source

TRAIN, TEST, SIZE = 800, 200, 8


def fetch(folder: Path, scratch: Path, notify: Notify) -> Arrays:
    """The four arrays of the data set, as uint8; one that is downloaded would be put into ``scratch`` first."""
    del folder, scratch
    notify("stripes: drawing them")
    generator = np.random.default_rng(0)
    labels = np.arange(TRAIN + TEST, dtype=np.uint8) % 4
    generator.shuffle(labels)
    rows, columns = np.indices((SIZE, SIZE))
    directions = np.stack([rows, columns, rows + columns, rows - columns])
    phases = generator.integers(0, 4, (len(labels), 1, 1))
    stripes = (directions[labels] + phases) % 4 < 2
    images = np.clip(160 * stripes + generator.normal(48, 48, stripes.shape), 0, 255).astype(np.uint8)
    return {
        "train_images": images[:TRAIN],
        "train_labels": labels[:TRAIN],
        "test_images": images[TRAIN:],
        "test_labels": labels[TRAIN:],
    }


SOURCE = Source(size_bytes=65_000, fetch=fetch)
