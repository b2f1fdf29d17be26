"""The data sets: a registry, their preparation on this machine, and loading their images into memory.

``load`` never uses the network; ``prepare`` (the command ``mixersweep data prepare NAME``) gets a data set once.
A further data set is one module with a ``Source`` and one line in ``REGISTRY``. Imports neither torch nor torchvision,
so ``mixersweep data list`` answers at once; ``splits.open_splits`` is what a training run takes its batches from.
"""

from __future__ import annotations

import difflib
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mixersweep import paths
from mixersweep.data import cifar, digits, fashion_mnist, folders, mnist, stl10, svhn
from mixersweep.data.folders import Folder
from mixersweep.data.source import (
    Damaged,
    Fetch,
    Images,
    Notify,
    Source,
    is_ready,
    is_undamaged,
    read,
    split_images,
    write,
)
from mixersweep.errors import DataMissing, UserError
from mixersweep.paths import expand_home

__all__ = ["REGISTRY", "Folder", "Images", "Row", "Source", "find", "listing", "load", "prepare"]

REGISTRY: dict[str, Source | Folder] = {
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "digits": digits.SOURCE,
    "fashion_mnist": fashion_mnist.WHOLE,
    "fashion_mnist_10k": fashion_mnist.SUBSET,
    "image_folder": folders.IMAGE_FOLDER,
    "imagenet": folders.IMAGENET,
    "mnist": mnist.SOURCE,
    "stl10": stl10.SOURCE,
    "svhn": svhn.SOURCE,
}
"""The data sets by name: those converted once into one file (``Source``), and folders of images (``Folder``)."""


@dataclass(frozen=True)
class Row:
    """One data set in the output of ``mixersweep data list``.

    ``size_bytes`` is its size on disk, approximate before it is prepared, and None if it depends on the user's images.
    ``where`` is its file or folder, or how to get it.
    """

    name: str
    ready: bool
    size_bytes: int | None
    where: str


def find(name: str) -> Source | Folder:
    """Look up a data set by name; raises ``UserError`` for an unknown one, with the nearest name."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, 1)
        rest = f"the nearest is {near[0]}" if near else f"there are {', '.join(REGISTRY)}"
        raise UserError(f"data={name}: no such data set; {rest}")
    return REGISTRY[name]


def load(name: str, data_dir: Path) -> tuple[Images, Images]:
    """Load the training and the test images of a data set that is on this machine; never downloads.

    Raises ``DataMissing`` if it is missing and ``UserError`` if it is damaged, both with a remedy, and ``UserError``
    for an unknown name or a folder of images.
    """
    source = find(name)
    if isinstance(source, Folder):
        raise UserError(f"data={name}: a folder of images, which is not loaded whole")
    path = _path(name, source, data_dir)
    if source.fetch and not path.exists():
        raise DataMissing(f"data={name}: not in {path.parent}; get it with: {_prepare_command(name, data_dir)}")
    try:
        return split_images(read(path, source.sha256))
    except Damaged as error:
        remedy = f"mend it with: {_prepare_command(name, data_dir)}" if source.fetch else "reinstall mixersweep"
        raise UserError(f"data={name}: {path} is damaged ({error}); {remedy}") from None


def prepare(name: str, data_dir: Path, notify: Notify) -> Path:
    """Put a data set into ``data_dir``, unless it is already there undamaged, and return the path of its file.

    ``notify`` is called with lines to show. Safe to repeat and to run in many processes at once: one does the work, the
    others wait. Raises ``UserError``, with a remedy, if the data cannot be obtained or written. For folders of images
    use ``folders.prepare``.
    """
    source = find(name)
    assert isinstance(source, Source), name
    path = _path(name, source, data_dir)
    if not source.fetch:
        notify(f"{name}: ships with the program, nothing to prepare")
        return path
    if is_undamaged(path):
        notify(f"{name}: ready in {path}")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(f"{name}: another process is preparing it, waiting")
            lock.acquire()
        try:
            _prepare(name, source.fetch, path, notify)
        finally:
            lock.release()
    except OSError as error:
        raise UserError(f"data_dir={data_dir}: {name} cannot be written there ({error})") from error
    return path


def listing(data_dir: Path) -> list[Row]:
    """List all data sets, prepared or not; looks at files' names and sizes only, and reads no images."""
    rows = []
    for name, source in REGISTRY.items():
        if isinstance(source, Folder):
            root = folders.root_of(name, data_dir, None)
            ready = folders.has_folders(source, root)
            wanted = f"wants {source.layout}, in {root} or data.root=DIR"
            rows.append(Row(name, ready, source.size_bytes, str(root) if ready else wanted))
            continue
        path = _path(name, source, data_dir)
        ready = is_ready(path, source.sha256)
        size = path.stat().st_size if ready else source.size_bytes
        rows.append(Row(name, ready, size, str(path) if ready else _prepare_command(name, data_dir)))
    return rows


def _prepare(name: str, fetch: Fetch, path: Path, notify: Notify) -> None:
    """Fetch the data and write the file, unless another process just did; the caller holds the lock."""
    if is_undamaged(path):
        notify(f"{name}: ready in {path}")
        return
    if path.exists():
        notify(f"{name}: {path} is damaged, making it again")
    scratch = path.with_name(f".{name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    scratch.mkdir()
    try:
        write(path, fetch(path.parent, scratch, notify), scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    notify(f"{name}: written to {path}")


def _path(name: str, source: Source, data_dir: Path) -> Path:
    """The file that a data set is loaded from."""
    folder = expand_home(data_dir, "data_dir") if source.fetch else Path(__file__).parent
    return folder / f"{name}.npz"


def _prepare_command(name: str, data_dir: Path) -> str:
    """The command line that gets a data set into ``data_dir``."""
    folder = expand_home(data_dir, "data_dir")
    try:
        is_default = folder == paths.data_dir()
    except UserError:  # nobody is at home
        is_default = False
    return f"mixersweep data prepare {name}" + ("" if is_default else f" --data-dir {shlex.quote(str(folder))}")
