"""Data sets of a second."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixersweep.data import load, splits


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[str]]:
    """Makes every data set one of so many training and test images; returns the settings that say so."""

    def shorten(train: int, test: int) -> list[str]:
        def shortened(name: str, data_dir: Path):
            first, second = load(name, data_dir)
            return first.subset(np.arange(train)), second.subset(np.arange(test))

        monkeypatch.setattr(splits, "load", shortened)
        return [f"data.train_images={train}", f"data.test_images={test}"]

    return shorten
