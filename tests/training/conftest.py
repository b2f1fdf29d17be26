"""A data set of a second."""

from pathlib import Path

import pytest

from mixersweep.data import prepare


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir that has the 1,797 digits of 8 x 8 pixels."""
    pytest.importorskip("sklearn")
    data_dir = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir, lambda text: None)
    return data_dir
