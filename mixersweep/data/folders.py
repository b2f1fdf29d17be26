"""Data sets that stay what they are, a folder of images for each class: ImageNet, and any tree of that form.

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

from mixersweep.data.source import Report
from mixersweep.errors import DataMissing, UserError
from mixersweep.paths import config_dir, expanded

READ_OF_A_SIDE = 1000
"""Files of a side that are read to tell a tree from another."""


@dataclass(frozen=True)
class Folder:
    """Where the images of a data set are: the folders under its root that may hold the test images, in that order.

    ``size_bytes`` is about what it takes; None where that depends. ``how`` says in the imperative how to get it.
    """

    test: tuple[str, ...]
    how: str
    size_bytes: int | None = None

    @property
    def layout(self) -> str:
        """What its root holds."""
        return f"train/ and {' or '.join(f'{test}/' for test in self.test)}, each with one folder of images a class"


IMAGENET = Folder(
    test=("val",),
    how="get it from image-net.org and sort val/ by class, or say where it is with data.root=DIR",
    size_bytes=154_600_000_000,
)
IMAGE_FOLDER = Folder(test=("test", "val"), how="say where yours is with data.root=DIR")


@dataclass(frozen=True, eq=False)
class Tree:
    """The files of one side of a data set: their paths below ``root``, encoded, and their classes, int64 (N,)."""

    root: Path
    files: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.NDArray[np.int64]) -> Tree:
        """The files at ``indices``, int64 (n,), in that order."""
        return Tree(self.root, self.files[indices], self.labels[indices])

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.root / os.fsdecode(self.files[index])


def root_of(name: str, data_dir: Path, root: str | None) -> Path:
    """Where a tree is: as set, or in the folder of its name in ``data_dir``."""
    return expanded(root, "data.root").absolute() if root else expanded(data_dir, "data_dir").absolute() / name


def is_there(folder: Folder, root: Path) -> bool:
    """Whether both sides are there, at a glance."""
    return (root / "train").is_dir() and any((root / test).is_dir() for test in folder.test)


def read_tree(name: str, folder: Folder, root: Path) -> tuple[Tree, Tree]:
    """The training and the test files, listed and not opened.

    Raises ``DataMissing`` where a side is missing, and ``UserError`` where the sides have different classes or a class
    has no images.
    """
    test = next((test for test in folder.test if (root / test).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise DataMissing(f"data={name}: {root} is no folder with {folder.layout}; {folder.how}")
    (train, train_classes), (tested, test_classes) = _side(name, root / "train"), _side(name, root / test)
    if train_classes != test_classes:
        odd = sorted(set(train_classes) ^ set(test_classes))[0]
        where = "train" if odd in train_classes else test
        raise UserError(f"data={name}: of {root}, only {where}/ has the class {odd}; both sides need the same classes")
    return train, tested


def content(train: Tree, test: Tree) -> str:
    """Two hashes of 16 hex digits that tell this tree from others: over its files' names, and over what is in them.

    The second is over the size of each file, and over all bytes of a thousand a side, evenly spread, so that a large
    tree is not read twice. Runs of earlier versions know the first alone (``names``). Raises ``UserError`` for a file
    that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for side in (train, test):
            paths = [side.path(index) for index in range(len(side))]
            digest.update(np.array([path.stat().st_size for path in paths], dtype="<i8").tobytes())
            for path in paths[:: -(-len(paths) // READ_OF_A_SIDE)]:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); mend or remove it") from None
    return f"{names(train, test)}-{digest.hexdigest()[:16]}"


def names(train: Tree, test: Tree) -> str:
    """16 hex digits over the names of the files."""
    digest = hashlib.sha256()
    for side in (train, test):
        digest.update(b"%d\n" % len(side) + b"\n".join(side.files.tolist()))
    return digest.hexdigest()[:16]


def settings(name: str, root: Path, train: Tree, test: Tree) -> dict[str, str | int]:
    """The settings that name a tree and state its facts."""
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
        "data.content": content(train, test),
    }
    return {**facts, "data.native_size": sizes.pop()[0]} if square else facts


def check(root: Path, facts: Mapping[str, Any], train: Tree, test: Tree) -> None:
    """Raises ``UserError`` where a tree is not what ``facts`` says, with what it is."""
    found: dict[str, str | int] = {
        "classes": int(train.labels.max()) + 1,
        "train_images": len(train),
        "test_images": len(test),
    }
    if (said := facts.get("content")) is not None:
        found["content"] = names(train, test) if re.fullmatch("[0-9a-f]{16}", said) else content(train, test)
    wrong = {fact: value for fact, value in found.items() if facts[fact] != value}
    if wrong:
        told = ", ".join(f"data.{fact}={facts[fact]}" for fact in wrong)
        there = " ".join(f"data.{fact}={value}" for fact, value in wrong.items())
        part = "" if "content" in found else "; for a part of it use data=image_folder"
        raise UserError(f"{told}: {root} has {there}{part}")


def unreadable(name: str, path: Path, error: Exception) -> UserError:
    """What is wrong with a picture, of which Pillow has many words; a picture that is far too large is none for it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"data={name}: {path} cannot be read ({reason}); mend or remove it")


@cache
def shipped_facts(name: str) -> dict[str, Any]:
    """What ``configs/data`` says of a data set."""
    facts = yaml.safe_load((config_dir() / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(facts, dict)
    return facts


def prepare(name: str, folder: Folder, root: Path, report: Report) -> dict[str, str | int]:
    """Check that a tree is there and as it should be; the settings that name it and state its facts."""
    train, test = read_tree(name, folder, root)
    facts = shipped_facts(name)
    if "content" not in facts:
        check(root, facts, train, test)
    report(f"{name}: {len(train):,} training and {len(test):,} test images in {root}, read as they are")
    found = settings(name, root, train, test)
    return found if "content" in facts else {"data": name, "data.root": str(root)}


def _side(name: str, side: Path) -> tuple[Tree, list[str]]:
    """The files of one side in the order of torchvision's reader, and its classes."""
    from torchvision.datasets.folder import is_image_file, make_dataset

    def is_shown(path: str) -> bool:
        return is_image_file(path) and not any(map(_is_unseen, Path(path[len(str(side)) + 1 :]).parts))

    try:
        classes = sorted(entry.name for entry in os.scandir(side) if entry.is_dir() and not _is_unseen(entry.name))
        numbers = {name: number for number, name in enumerate(classes)}
        samples = make_dataset(str(side), numbers or None, is_valid_file=is_shown)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data={name}: {side} needs one folder of images a class ({reason})") from None
    files = [os.fsencode(os.path.relpath(path, side)) for path, _ in samples]
    return Tree(side, np.array(files), np.array([number for _, number in samples], dtype=np.int64)), classes


def _is_unseen(name: str) -> bool:
    """Whether it is what file managers, archives and notebooks leave."""
    return name.startswith(".") or name == "__MACOSX"
