"""Make mixersweep/data/fashion_mnist_10k.npz: the first images of each class of Fashion-MNIST, in file order.

    python scripts/make_fashion_mnist_10k.py SOURCE_DIR [TARGET]

SOURCE_DIR holds the four gzipped idx files, e.g. /usr/share/datasets/fashion-mnist of Debian's package
dataset-fashion-mnist; their contents are checked against the published sums. Of each of the ten classes the first 1,000
training and the first 200 test images are kept. The same files give the same bytes on every run; what is printed is the
sha256 that mixersweep/data/fashion_mnist.py has to name.
"""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout that this script is in

import mixersweep.data
from mixersweep.data.fashion_mnist import read_idx
from mixersweep.data.source import write_npz

TARGET = Path(mixersweep.data.__file__).with_name("fashion_mnist_10k.npz")
PER_CLASS = {"train": 1000, "test": 200}


def main(source: Path, target: Path) -> None:
    whole, subset = read_idx(source), {}
    for part, count in PER_CLASS.items():
        labels = whole[f"{part}_labels"]
        kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
        subset[f"{part}_images"] = whole[f"{part}_images"][kept]
        subset[f"{part}_labels"] = labels[kept]
    write_npz(target, subset, zipfile.ZIP_DEFLATED)
    print(hashlib.sha256(target.read_bytes()).hexdigest())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else TARGET
    main(Path(sys.argv[1]), target)
