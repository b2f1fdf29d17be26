"""What holds for all tests."""

import signal
from pathlib import Path

import pytest

# Many send a Ctrl-C to a command that they have started. A shell that starts tests in the background has it ignored,
# and the commands would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip(f"needs a GPU, and torch {torch.__version__} sees none")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir that has the 1,797 digits of 8 x 8 pixels."""
    pytest.importorskip("sklearn")
    from mixersweep.data import prepare

    data_dir = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir, lambda text: None)
    return data_dir
