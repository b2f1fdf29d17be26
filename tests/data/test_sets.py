"""The data sets on disk: what ships is what the script makes, and what is prepared is whole or refused."""

import gzip
import hashlib
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from mixersweep import data
from mixersweep.data import fashion_mnist, idx
from mixersweep.data.source import read
from mixersweep.errors import DataMissing, UserError
from tests.speed import HANGS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(data.__file__).with_name("fashion_mnist_10k.npz")

needs_package = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_DIR.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A small data set in the four real files, standing for Debian's package."""
    arrays = write_package(tmp_path / "package")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "package")
    monkeypatch.setattr(fashion_mnist, "SHA256", {key: sha for key, (_, sha) in arrays.items()})
    return {key: array for key, (array, _) in arrays.items()}


def write_package(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    folder.mkdir()
    rng, arrays = np.random.default_rng(0), {}
    shapes = {"train_images": (20, 28, 28), "train_labels": (20,), "test_images": (10, 28, 28), "test_labels": (10,)}
    for key, shape in shapes.items():
        array = rng.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8)
        content = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">i4").tobytes() + array.tobytes()
        (folder / f"{idx.FILES[key]}.gz").write_bytes(gzip.compress(content))
        arrays[key] = (array, hashlib.sha256(content).hexdigest())
    return arrays


def row(name: str, folder: Path) -> data.Row:
    """One line of ``data list``."""
    return next(row for row in data.listing(folder) if row.name == name)


# --- what ships --------------------------------------------------------------------------------------------------


def test_the_shipped_subset_is_balanced_and_whole(tmp_path: Path) -> None:
    assert SHIPPED.stat().st_size < 6_000_000
    train, test = data.load("fashion_mnist_10k", tmp_path)
    for images, per_class in ((train, 1000), (test, 200)):
        assert images.images.shape == (10 * per_class, 1, 28, 28)
        assert images.images.dtype == np.uint8
        assert images.labels.dtype == np.int64
        assert np.bincount(images.labels).tolist() == [per_class] * 10
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == fashion_mnist.SUBSET.sha256
    assert "2017 Zalando SE" in SHIPPED.with_name("FASHION_MNIST_LICENSE").read_text()


def test_a_damaged_shipped_file_asks_to_reinstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.REGISTRY, "fashion_mnist_10k", data.Source(size_bytes=1, sha256="0" * 64))
    with pytest.raises(UserError, match=r"^data=fashion_mnist_10k: .* is damaged .*; reinstall mixersweep$"):
        data.load("fashion_mnist_10k", tmp_path)


def test_there_is_nothing_to_prepare_for_it(tmp_path: Path) -> None:
    said: list[str] = []
    assert data.prepare("fashion_mnist_10k", tmp_path, said.append) == SHIPPED
    assert said == ["fashion_mnist_10k: ships with the program, nothing to prepare"]
    assert not list(tmp_path.iterdir())


@needs_package
def test_the_script_makes_the_shipped_subset(tmp_path: Path) -> None:
    made = tmp_path / "made.npz"
    script = ROOT / "scripts/make_fashion_mnist_10k.py"
    subprocess.run([sys.executable, script, fashion_mnist.DEBIAN_DIR, made], check=True, capture_output=True)
    ours, theirs = read(SHIPPED, fashion_mnist.SUBSET.sha256), read(made, hashlib.sha256(made.read_bytes()).hexdigest())
    assert list(ours) == list(theirs)
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key])
    whole = fashion_mnist.read_idx(fashion_mnist.DEBIAN_DIR)
    first_bag = np.flatnonzero(whole["train_labels"] == 8)[0]
    np.testing.assert_array_equal(ours["train_images"][ours["train_labels"] == 8][0], whole["train_images"][first_bag])


def test_every_configured_data_set_is_registered() -> None:
    assert {path.stem for path in (ROOT / "configs/data").glob("*.yaml")} == set(data.REGISTRY)


# --- preparing ---------------------------------------------------------------------------------------------------


def test_prepare_once_then_load(tmp_path: Path, published: dict[str, np.ndarray]) -> None:
    said: list[str] = []
    folder = tmp_path / "deep" / "data"
    path = data.prepare("fashion_mnist", folder, said.append)
    assert said == [f"fashion_mnist: reading {tmp_path / 'package'}", f"fashion_mnist: written to {path}"]
    before = path.stat().st_mtime_ns
    assert data.prepare("fashion_mnist", folder, said.append) == path
    assert said[2:] == [f"fashion_mnist: ready in {path}"]
    assert path.stat().st_mtime_ns == before
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") == [
        "fashion_mnist.npz",
        "fashion_mnist.npz.sha256",
    ]

    train, test = data.load("fashion_mnist", folder)
    for images, part in ((train, "train"), (test, "test")):
        np.testing.assert_array_equal(images.images[:, 0], published[f"{part}_images"])
        np.testing.assert_array_equal(images.labels, published[f"{part}_labels"])


@needs_package
def test_prepare_the_whole_data_set(tmp_path: Path) -> None:
    path = data.prepare("fashion_mnist", tmp_path, lambda _: None)
    train, test = data.load("fashion_mnist", tmp_path)
    assert (train.images.shape, test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert abs(path.stat().st_size - fashion_mnist.WHOLE.size_bytes) < 1000


def test_four_processes_prepare_at_once(tmp_path: Path) -> None:
    sums = {key: sha for key, (_, sha) in write_package(tmp_path / "package").items()}
    program = f"""
import time
from pathlib import Path
from mixersweep import data
from mixersweep.data import fashion_mnist, idx
fashion_mnist.DEBIAN_DIR, fashion_mnist.SHA256 = Path({str(tmp_path / "package")!r}), {sums}
data.prepare("fashion_mnist", Path({str(tmp_path / "data")!r}), lambda line: (print(line), time.sleep(0.2)))
data.load("fashion_mnist", Path({str(tmp_path / "data")!r}))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=HANGS) for process in processes]
    assert [(process.returncode, err) for process, (_, err) in zip(processes, outputs, strict=True)] == [(0, b"")] * 4
    ends = sorted(out.decode().splitlines()[-1].split()[1] for out, _ in outputs)
    assert ends == ["ready", "ready", "ready", "written"]


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("harm", ["truncated", "flipped", "emptied", "no checksum"])
def test_a_damaged_file_is_refused_and_made_again(tmp_path: Path, harm: str) -> None:
    path = data.prepare("fashion_mnist", tmp_path, lambda _: None)
    content = path.read_bytes()
    middle = len(content) // 2
    if harm == "no checksum":
        path.with_name("fashion_mnist.npz.sha256").unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:-100], "flipped": flipped, "emptied": b""}[harm])
    with pytest.raises(UserError, match="is damaged") as caught:
        data.load("fashion_mnist", tmp_path)
    assert str(caught.value).endswith(f"; mend it with: mixersweep data prepare fashion_mnist --data-dir {tmp_path}")

    said: list[str] = []
    data.prepare("fashion_mnist", tmp_path, said.append)
    assert said[0] == f"fashion_mnist: {path} is damaged, making it again"
    assert path.read_bytes() == content
    data.load("fashion_mnist", tmp_path)


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path, published: dict[str, np.ndarray]) -> None:
    del published
    left = tmp_path / ".fashion_mnist.part"
    left.mkdir()
    (left / "fashion_mnist.npz").write_bytes(b"half")
    data.prepare("fashion_mnist", tmp_path, lambda _: None)
    assert not left.exists()


def test_a_package_with_other_bytes_is_refused(
    tmp_path: Path, published: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    del published
    monkeypatch.setitem(fashion_mnist.SHA256, "test_labels", "0" * 64)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is not the published file"):
        data.prepare("fashion_mnist", tmp_path, lambda _: None)
    assert not row("fashion_mnist", tmp_path).ready


# --- messages ----------------------------------------------------------------------------------------------------


def test_missing_data_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"data=fashion_mnist: not in {tmp_path}; get it with: mixersweep data prepare fashion_mnist"
    with pytest.raises(DataMissing) as caught:
        data.load("fashion_mnist", tmp_path)
    assert str(caught.value) == f"{expected} --data-dir {tmp_path}"
    monkeypatch.setenv("MIXERSWEEP_DATA", str(tmp_path))
    with pytest.raises(DataMissing) as caught:
        data.load("fashion_mnist", tmp_path)
    assert str(caught.value) == expected


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data=fashion_mnst: no such data set; the nearest is fashion_mnist$"):
        data.load("fashion_mnst", tmp_path)
    with pytest.raises(UserError, match=r"there are cifar10, cifar100, .*, fashion_mnist, fashion_mnist_10k"):
        data.prepare("x", tmp_path, print)


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "none")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers
    with pytest.raises(UserError, match="install Debian's package dataset-fashion-mnist") as caught:
        data.prepare("fashion_mnist", tmp_path, lambda _: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".fashion_mnist.part").exists()


def test_a_download_is_converted(
    tmp_path: Path,
    published: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torchvision.datasets import FashionMNIST

    package = fashion_mnist.DEBIAN_DIR
    files = [f"{name}.gz" for name in idx.FILES.values()]
    sums = [hashlib.md5((package / name).read_bytes()).hexdigest() for name in files]
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "none")
    monkeypatch.setattr(FashionMNIST, "resources", list(zip(files, sums, strict=True)))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=package)) as server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        Thread(target=server.serve_forever).start()
        try:
            data.prepare("fashion_mnist", tmp_path / "data", lambda _: None)
        finally:
            server.shutdown()
    train, _ = data.load("fashion_mnist", tmp_path / "data")
    np.testing.assert_array_equal(train.images[:, 0], published["train_images"])
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, published: dict[str, np.ndarray]) -> None:
    del published
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^data_dir=.*/file: fashion_mnist cannot be written there"):
        data.prepare("fashion_mnist", tmp_path / "file", lambda _: None)


# --- listing -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_listing_before_and_after(tmp_path: Path) -> None:
    whole, subset = row("fashion_mnist", tmp_path), row("fashion_mnist_10k", tmp_path)
    assert (whole.name, whole.ready, whole.size_bytes) == ("fashion_mnist", False, fashion_mnist.WHOLE.size_bytes)
    assert whole.where.startswith("mixersweep data prepare fashion_mnist")
    assert (subset.ready, subset.size_bytes, subset.where) == (True, SHIPPED.stat().st_size, str(SHIPPED))
    path = data.prepare("fashion_mnist", tmp_path, lambda _: None)
    assert row("fashion_mnist", tmp_path) == data.Row("fashion_mnist", True, path.stat().st_size, str(path))


def test_listing_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, mixersweep.data as d;"
        f"d.listing(pathlib.Path({str(tmp_path)!r})); assert not {{'torch', 'torchvision'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
