"""What tests on a GPU share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device inside raises, where torch can tell; afterwards it may again."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # that the mode is a prototype: an error itself where warnings are errors
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
