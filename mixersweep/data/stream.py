"""Batches of images that worker processes read and augment, one at a time.

They are for what ``DeviceImages`` cannot do: augmentation policies, random resized crops, and images too large or too
many to hold on the device. Each image's random choices are seeded by (augment_seed, image) in the worker, so batches
depend neither on the number of workers nor on that of ranks. Normalisation and erasing are done on the device, for the
whole batch.
"""

from __future__ import annotations

import atexit
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixersweep import processor
from mixersweep.data.batches import NormaliseAndErase, epoch_order, rank_batches
from mixersweep.data.folders import Tree, unreadable
from mixersweep.data.source import Images
from mixersweep.data.views import Picture, View, seeding_restored, to_8_bits
from mixersweep.errors import MixersweepError, UserError
from mixersweep.kinds import Auto
from mixersweep.seeds import derive

Key = tuple[int, int, int | None]
"""The index of a split, the index of an image in it, and the augment_seed, None for no augmentation."""

MAX_WORKERS = 16
GRACE_SECONDS = 60
"""How long a worker survives SIGTERM, which a whole job may get; the trainer saves and ends its workers before."""


class LoaderFailed(MixersweepError):
    """A worker process died: it was killed, or ran out of memory."""


@dataclass(frozen=True)
class Unreadable:
    """What a worker returns instead of a batch with an image that it cannot read: the reason, in one line."""

    reason: str


@dataclass(frozen=True)
class StreamedSplit:
    """The images of one split, and the ``View`` that resizes and augments them."""

    name: str
    images: Images | Tree
    view: View

    def picture(self, index: int) -> Picture:
        """One image as it is stored; raises ``UserError`` if its file cannot be read or has another size."""
        if isinstance(self.images, Images):
            pixels = self.images.images[index]
            return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        path, size = self.images.path(index), self.view.data.native_size
        try:
            with Image.open(path) as opened:
                picture = to_8_bits(opened).convert("L" if self.view.grey else "RGB")
        except MemoryError:
            raise
        except Exception as error:  # PIL raises many, by format
            raise unreadable(self.name, path, error) from error
        if size is not None and picture.size != (size, size):
            found = "x".join(map(str, picture.size))
            raise UserError(f"data.native_size={size}: {path} has {found} pixels; use null, and data.fit=crop")
        return picture


class Workers:
    """Worker processes that all splits of a data set share and that live over the epochs; 0 reads in this process."""

    def __init__(self, splits: list[StreamedSplit], count: int, device: torch.device) -> None:
        self._dataset, self._count, self._device = _StreamedImages(splits), count, device
        self._persistent: tuple[_KeySampler, DataLoader[Any]] | None = None
        self._iterators: list[Any] = []
        self._busy = False
        _POOLS.add(self)

    def batches(self, keys: Iterable[list[Key]]) -> Iterator[Tensor]:
        """Yield a batch, uint8 (B, channels, image_size, image_size), for each list of keys, in that order.

        Raises ``LoaderFailed`` if a worker died, and ``UserError`` for an image that cannot be read.
        """
        if self._busy:  # an epoch within an epoch has processes of its own
            yield from self._iterate(*self._make_loader(persistent=False), keys)
            return
        if self._persistent is None:
            self._persistent = self._make_loader(persistent=True)
        self._busy = True
        try:
            yield from self._iterate(*self._persistent, keys)
        finally:
            self._busy = False

    def close(self) -> None:
        """End the processes; another epoch would start new ones."""
        self._persistent = None
        while self._iterators:
            shutdown = getattr(self._iterators.pop(), "_shutdown_workers", None)
            if shutdown is not None:
                shutdown()

    def _make_loader(self, *, persistent: bool) -> tuple[_KeySampler, DataLoader[Any]]:
        keys, has_workers = _KeySampler(), self._count > 0
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=keys,
            num_workers=self._count,
            collate_fn=_unchanged,
            worker_init_fn=_ignore_stop_signals,
            pin_memory=self._device.type == "cuda",
            persistent_workers=persistent and has_workers,
            generator=torch.Generator(),  # else it would draw from the global state
        )
        return keys, loader

    def _iterate(self, sampler: _KeySampler, loader: DataLoader[Any], keys: Iterable[list[Key]]) -> Iterator[Tensor]:
        sampler.keys = keys
        iterator = _quiet_iterator(loader)
        if iterator not in self._iterators:
            self._iterators.append(iterator)
        try:
            for batch in iterator:
                if isinstance(batch, Unreadable):
                    raise UserError(batch.reason)
                yield batch
        except Exception as error:
            self.close()
            reason = " ".join(str(error).split())
            worker_died = "exited unexpectedly" in reason or "killed by signal" in reason
            if not worker_died and not isinstance(error, (ConnectionError, EOFError)):  # of the pipe that it held
                raise
            raise LoaderFailed(
                f"workers={self._count}: a process that reads images died ({reason}); "
                "where memory or /dev/shm ran out, lower workers or batch_size"
            ) from error


class Stream:
    """A split of a data set (``Batches``) whose images the workers read."""

    def __init__(
        self, workers: Workers, split: int, images: Images | Tree, normalise_and_erase: NormaliseAndErase
    ) -> None:
        self._workers, self._split, self._normalise_and_erase = workers, split, normalise_and_erase
        self._labels = torch.tensor(images.labels)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(
        self,
        batch_size: int,
        order_seed: int | None,
        augment_seed: int | None,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch, see ``Batches``."""
        boxes, device = self._normalise_and_erase.boxes(len(self), augment_seed), self._normalise_and_erase.device

        def rank_indices() -> Iterator[Tensor]:
            order = epoch_order(len(self), order_seed)
            return (which for (which,) in rank_batches([order], batch_size, first_step, rank, world_size))

        keys = ([(self._split, index, augment_seed) for index in which.tolist()] for which in rank_indices())
        for which, pixels in zip(rank_indices(), self._workers.batches(keys), strict=True):
            labels = self._labels[which].to(device, non_blocking=True)
            on_device = pixels.to(device, non_blocking=True)
            yield self._normalise_and_erase(on_device, boxes, which.to(device) if boxes else None), labels


def choose_workers(setting: int | Auto, processes: int = 1) -> int:
    """The number of workers of each of ``processes`` trainers on this machine; ``auto`` divides the cores by them."""
    if setting != "auto":
        return setting
    return max(1, min(MAX_WORKERS, len(processor.cores()) // processes))


class _StreamedImages(Dataset[Any]):
    """The data set that workers serve: maps a list of keys to a batch, or to ``Unreadable``."""

    def __init__(self, splits: list[StreamedSplit]) -> None:
        self._splits = splits

    def __getitems__(self, keys: list[Key]) -> Tensor | Unreadable:
        with seeding_restored() as seed:
            try:
                return self._batch([self._image(key, seed) for key in keys])
            except UserError as error:
                return Unreadable(str(error))

    def _image(self, key: Key, seed: Any) -> Tensor:
        which, index, augment_seed = key
        split = self._splits[which]
        picture = split.picture(index)
        if augment_seed is None:
            return split.view.plain(picture)
        seed(derive(augment_seed, index))
        return split.view.augmented(picture)

    def _batch(self, images: list[Tensor]) -> Tensor:
        if images:
            return torch.stack(images)
        view = self._splits[0].view
        return torch.empty((0, view.data.image_channels, view.image_size, view.image_size), dtype=torch.uint8)


class _KeySampler:
    """The batch sampler: yields the lists of keys of the coming epoch."""

    keys: Iterable[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)


def _unchanged(batch: Any) -> Any:
    return batch


_TRAINER_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


def _ignore_stop_signals(_: int) -> None:
    """Ignore the signals that stop a run: the trainer acts on them, saves, and ends its workers."""
    for number in _TRAINER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TRAINER_SIGNALS)


def _quiet_iterator(loader: DataLoader[Any]) -> Any:
    """An iterator over the loader without torch's SIGCHLD handler, which would raise anywhere in the trainer.

    Dead workers are noticed when a batch is read instead. Workers start with the trainer's signals blocked, so that
    none ends them before ``_ignore_stop_signals`` has run.
    """
    child_signal = getattr(signal, "SIGCHLD", None)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(child_signal) if child_signal and is_main else None
    masks = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINER_SIGNALS) if masks else set()
    try:
        iterator = iter(loader)
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if before is not None and child_signal is not None:
        signal.signal(child_signal, before)
    return iterator


_POOLS: weakref.WeakSet[Workers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all workers at exit, before multiprocessing would wait for them."""
    for pool in list(_POOLS):
        pool.close()
