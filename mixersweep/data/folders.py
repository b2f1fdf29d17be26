"""Data sets that are used as they are, with one folder of images per class: ImageNet, and any such tree.

Such a tree is too large to convert; its images are read and decoded anew in each epoch. ``root/train`` holds the
training images, ``root/val`` or ``root/test`` the test images. Classes are numbered in the order of their folders'
names, as torchvision's ``ImageFolder`` does it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from mixersweep.data.source import Notify
from mixersweep.errors import DataMissing, UserError
from mixersweep.paths import config_dir, expand_home

SAMPLED_FILES = 1000
"""About how many files of each side (training or test) are read to identify a tree."""


@dataclass(frozen=True)
class Folder:
    """A data set whose images are files; ``test`` lists the folders that may hold the test images, first match first.

    ``size_bytes`` is its approximate size, None if it varies. ``remedy`` says how to get it, in the imperative.
    """

    test: tuple[str, ...]
    remedy: str
    size_bytes: int | None = None

    @property
    def layout(self) -> str:
        """The layout that its root must have, in words."""
        return f"train/ and {' or '.join(f'{test}/' for test in self.test)}, each with one folder of images a class"


IMAGENET = Folder(
    test=("val",),
    remedy="get it from image-net.org and sort val/ by class, or say where it is with data.root=DIR",
    size_bytes=154_600_000_000,
)
IMAGE_FOLDER = Folder(test=("test", "val"), remedy="say where yours is with data.root=DIR")


@dataclass(frozen=True, eq=False)
class Tree:
    """The files of one side (training or test) of a data set: encoded paths below ``root``, and labels, int64 (N,)."""

    root: Path
    files: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.NDArray[np.int64]) -> Tree:
        """The files at ``indices``, int64 (n,), in that order."""
        return Tree(self.root, self.files[indices], self.labels[indices])

    def path(self, index: int) -> Path:
        """The path of one image."""
        return self.root / os.fsdecode(self.files[index])


def root_of(name: str, data_dir: Path, root: str | None) -> Path:
    """The absolute root of a data set: ``root`` if set, else the folder ``name`` in ``data_dir``."""
    return expand_home(root, "data.root").absolute() if root else expand_home(data_dir, "data_dir").absolute() / name


def has_folders(folder: Folder, root: Path) -> bool:
    """Whether the folders of both sides exist; does not look into them."""
    return (root / "train").is_dir() and any((root / test).is_dir() for test in folder.test)


def read_tree(name: str, folder: Folder, root: Path) -> tuple[Tree, Tree]:
    """List the training and the test files, without opening them.

    Raises ``DataMissing`` if a side is missing, and ``UserError`` if the sides have different classes or a class has no
    images.
    """
    test = next((test for test in folder.test if (root / test).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise DataMissing(f"data={name}: {root} is no folder with {folder.layout}; {folder.remedy}")
    (train, train_classes), (test_tree, test_classes) = _read_side(name, root / "train"), _read_side(name, root / test)
    if train_classes != test_classes:
        unmatched = sorted(set(train_classes) ^ set(test_classes))[0]
        where = "train" if unmatched in train_classes else test
        raise UserError(
            f"data={name}: of {root}, only {where}/ has the class {unmatched}; both sides need the same classes"
        )
    return train, test_tree


def content_hash(train: Tree, test: Tree) -> str:
    """Two hashes of 16 hex digits, joined by "-", that identify a tree: of its files' names and of their contents.

    The second covers the size of each file and all bytes of about a thousand files a side, evenly spread, so that a
    large tree is not read as a whole. Runs of earlier versions recorded only the first (``names_hash``). Raises
    ``UserError`` for a file that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for side in (train, test):
            paths = [side.path(index) for index in range(len(side))]
            digest.update(np.array([path.stat().st_size for path in paths], dtype="<i8").tobytes())
            for path in paths[:: -(-len(paths) // SAMPLED_FILES)]:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); mend or remove it") from None
    return f"{names_hash(train, test)}-{digest.hexdigest()[:16]}"


def names_hash(train: Tree, test: Tree) -> str:
    """A hash, 16 hex digits, of the names of the files."""
    digest = hashlib.sha256()
    for side in (train, test):
        digest.update(b"%d\n" % len(side) + b"\n".join(side.files.tolist()))
    return digest.hexdigest()[:16]


def settings_of(name: str, root: Path, train: Tree, test: Tree) -> dict[str, str | int]:
    """The settings for a tree: its name, root, classes, numbers of images and content hash.

    ``data.native_size`` is included if the first images of all classes are squares of one size. Raises ``UserError``
    if one of these cannot be read.
    """
    from PIL import Image

    sizes = set()
    first_of_class = np.unique(train.labels, return_index=True)[1]
    for index in first_of_class.tolist():
        try:
            with Image.open(train.path(index)) as image:
                sizes.add(image.size)
        except Exception as error:
            raise unreadable(name, train.path(index), error) from error
    square = len(sizes) == 1 and len(set(sizes.copy().pop())) == 1
    facts: dict[str, str | int] = {
        "data": name,
        "data.root": str(root),
        "data.classes": int(train.labels.max()) + 1,
        "data.train_images": len(train),
        "data.test_images": len(test),
        "data.content": content_hash(train, test),
    }
    return {**facts, "data.native_size": sizes.pop()[0]} if square else facts


def check(root: Path, facts: Mapping[str, Any], train: Tree, test: Tree) -> None:
    """Raise ``UserError`` if a tree does not match the settings ``facts``, naming the values found."""
    found: dict[str, str | int] = {
        "classes": int(train.labels.max()) + 1,
        "train_images": len(train),
        "test_images": len(test),
    }
    if (recorded := facts.get("content")) is not None:
        is_of_names = re.fullmatch("[0-9a-f]{16}", recorded)
        found["content"] = names_hash(train, test) if is_of_names else content_hash(train, test)
    wrong = {fact: value for fact, value in found.items() if facts[fact] != value}
    if wrong:
        expected = ", ".join(f"data.{fact}={facts[fact]}" for fact in wrong)
        actual = " ".join(f"data.{fact}={value}" for fact, value in wrong.items())
        part = "" if "content" in found else "; for a part of it use data=image_folder"
        raise UserError(f"{expected}: {root} has {actual}{part}")


def unreadable(name: str, path: Path, error: Exception) -> UserError:
    """Turn any of Pillow's errors about a file into a ``UserError`` that names the file."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"data={name}: {path} cannot be read ({reason}); mend or remove it")


@cache
def shipped_facts(name: str) -> dict[str, Any]:
    """The settings of a data set in ``configs/data``."""
    facts = yaml.safe_load((config_dir() / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(facts, dict)
    return facts


def prepare(name: str, folder: Folder, root: Path, notify: Notify) -> dict[str, str | int]:
    """Check that a tree exists and matches its settings; returns the settings with which to use it.

    Raises what ``read_tree``, ``check`` and ``settings_of`` do.
    """
    train, test = read_tree(name, folder, root)
    facts = shipped_facts(name)
    if "content" not in facts:
        check(root, facts, train, test)
    notify(f"{name}: {len(train):,} training and {len(test):,} test images in {root}, read as they are")
    found = settings_of(name, root, train, test)
    return found if "content" in facts else {"data": name, "data.root": str(root)}


def _read_side(name: str, side: Path) -> tuple[Tree, list[str]]:
    """The files of one side, in the order of torchvision's ``ImageFolder``, and the names of its classes."""
    from torchvision.datasets.folder import is_image_file, make_dataset

    def is_shown(path: str) -> bool:
        return is_image_file(path) and not any(map(_is_hidden, Path(path[len(str(side)) + 1 :]).parts))

    try:
        classes = sorted(entry.name for entry in os.scandir(side) if entry.is_dir() and not _is_hidden(entry.name))
        numbers = {name: number for number, name in enumerate(classes)}
        samples = make_dataset(str(side), numbers or None, is_valid_file=is_shown)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data={name}: {side} needs one folder of images a class ({reason})") from None
    files = [os.fsencode(os.path.relpath(path, side)) for path, _ in samples]
    return Tree(side, np.array(files), np.array([number for _, number in samples], dtype=np.int64)), classes


def _is_hidden(name: str) -> bool:
    """Whether a name is hidden, or a leftover of file managers, archives or notebooks."""
    return name.startswith(".") or name == "__MACOSX"
