"""Small data sets in the layouts of the published ones, put where a user who downloaded them by hand would put them.

Each writer returns the four arrays that a reader has to find, and the sums of the files it wrote.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

Arrays = dict[str, np.ndarray]

TRAIN, TEST = 20, 10


def some_arrays(size: int, channels: int, classes: int, train: int = TRAIN, test: int = TEST) -> Arrays:
    """Noise, uint8 (N, channels, size, size), and labels in which every class appears."""
    rng, arrays = np.random.default_rng(size), {}
    for part, count in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        arrays[f"{part}_labels"] = rng.permutation(np.arange(count) % classes).astype(np.uint8)
    return arrays


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packed(folder: Path, name: str) -> Path:
    """The archive ``name`` beside the folder, which goes away."""
    archive = folder.with_name(name)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return archive


def write_cifar(folder: Path, hundred: bool) -> tuple[Arrays, dict[str, str]]:
    """The pickles of CIFAR-10's or CIFAR-100's Python version: rows of all red, all green, all blue pixels."""
    folder.mkdir(parents=True)
    arrays = some_arrays(32, 3, 100 if hundred else 10, train=100 if hundred else 50, test=100 if hundred else 10)
    names = {"train": ["train"], "test": ["test"]}
    if not hundred:
        names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    for part, files in names.items():
        images = np.split(arrays[f"{part}_images"].reshape(-1, 3072), len(files))
        labels = np.split(arrays[f"{part}_labels"], len(files))
        for file, rows, mine in zip(files, images, labels, strict=True):
            key = "fine_labels" if hundred else "labels"
            entry = {"batch_label": file, key: mine.tolist(), "data": rows, "filenames": [""] * len(rows)}
            if hundred:
                entry["coarse_labels"] = [0] * len(rows)
            (folder / file).write_bytes(pickle.dumps(entry, protocol=2))
    meta = {"fine_label_names": ["apple"]} if hundred else {"label_names": ["airplane"]}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return arrays, {file.name: md5(file) for file in folder.iterdir()}


def write_stl10(folder: Path) -> tuple[Arrays, dict[str, str]]:
    """STL-10's binaries: each image column by column, labels from 1 on; without the unlabelled images."""
    folder.mkdir(parents=True)
    arrays = some_arrays(96, 3, 10)
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(arrays[f"{part}_images"].transpose(0, 1, 3, 2).tobytes())
        (folder / f"{part}_y.bin").write_bytes((arrays[f"{part}_labels"] + 1).tobytes())
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    return arrays, {file.name: md5(file) for file in folder.iterdir()}


def write_svhn(folder: Path) -> tuple[Arrays, dict[str, str]]:
    """SVHN's .mat files: images in the last axis, and 10 for the digit 0."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = some_arrays(32, 3, 10)
    for part in ("train", "test"):
        labels = arrays[f"{part}_labels"].copy()
        labels[labels == 0] = 10
        content = {"X": arrays[f"{part}_images"].transpose(2, 3, 1, 0), "y": labels[:, None]}
        scipy.io.savemat(folder / f"{part}_32x32.mat", content)
    return arrays, {part: md5(folder / f"{part}_32x32.mat") for part in ("train", "test")}


def write_idx(path: Path, array: np.ndarray) -> bytes:
    """An idx file of MNIST's kind."""
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def write_tree(
    root: Path, sides: dict[str, int], classes: tuple[str, ...], size: tuple[int, int] | None = None, form: str = "png"
) -> dict[str, list[tuple[str, np.ndarray]]]:
    """``root/SIDE/CLASS/*``, so many images a class, of one size or of many: (class, pixels) in file order."""
    rng, written = np.random.default_rng(0), {}
    for side, count in sides.items():
        written[side] = []
        for name in classes:
            (root / side / name).mkdir(parents=True)
            for number in range(count):
                width, height = size or tuple(int(side) for side in rng.integers(40, 90, 2))
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / side / name / f"{name}_{number}.{form}")
                written[side].append((name, pixels))
    return written
