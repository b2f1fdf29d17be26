"""Every reader on small files in the published layout, where a user would have put them; and folders of images."""

import gzip
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, STL10, SVHN

from mixersweep import data
from mixersweep.data import cifar, digits, folders, idx, mnist, stl10, svhn
from mixersweep.errors import DataMissing, UserError
from tests.data.layouts import (
    Arrays,
    packed,
    sha256,
    some_arrays,
    write_cifar,
    write_idx,
    write_stl10,
    write_svhn,
    write_tree,
)

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = {"cifar10": CIFAR10.filename, "cifar100": CIFAR100.filename}
CONVERTED = [name for name, source in data.REGISTRY.items() if isinstance(source, data.Source)]


def assert_loads(name: str, folder: Path, arrays: Arrays) -> None:
    """What ``load`` finds is what was written."""
    for images, part in zip(data.load(name, folder), ("train", "test"), strict=True):
        assert images.images.dtype == np.uint8
        assert images.labels.dtype == np.int64
        np.testing.assert_array_equal(images.images, arrays[f"{part}_images"])
        np.testing.assert_array_equal(images.labels, arrays[f"{part}_labels"])


def prepared(name: str, folder: Path) -> list[str]:
    """The lines that preparing says."""
    said: list[str] = []
    data.prepare(name, folder, said.append)
    return said


@pytest.fixture
def cifar_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[str, Path, Arrays]:
    """CIFAR-10 or CIFAR-100 unpacked in a data folder; their sums are those of what was written."""
    name = getattr(request, "param", "cifar10")
    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = tmp_path / reader.base_folder
    arrays, sums = write_cifar(folder, hundred=name == "cifar100")
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(reader, files, [[file, sums[file]] for file, _ in getattr(reader, files)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums[reader.meta["filename"]]})
    return name, folder, arrays


@pytest.mark.parametrize("cifar_folder", ["cifar10", "cifar100"], indirect=True)
def test_cifar_unpacked(cifar_folder: tuple[str, Path, Arrays], tmp_path: Path) -> None:
    name, folder, arrays = cifar_folder
    assert prepared(name, tmp_path) == [f"{name}: reading {folder}", f"{name}: written to {tmp_path / name}.npz"]
    assert_loads(name, tmp_path, arrays)


@pytest.mark.parametrize("cifar_folder", ["cifar10", "cifar100"], indirect=True)
def test_cifar_as_its_archive(
    cifar_folder: tuple[str, Path, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder, arrays = cifar_folder
    archive = packed(folder, ARCHIVES[name])
    with pytest.raises(UserError, match=f"^data={name}: {archive} is not the published file .sha256 differs."):
        data.prepare(name, tmp_path, lambda _: None)
    monkeypatch.setitem(cifar.SHA256, name, sha256(archive))
    assert prepared(name, tmp_path)[0] == f"{name}: reading {archive}"
    assert_loads(name, tmp_path, arrays)
    assert not folder.exists()  # unpacked elsewhere, and that is gone too
    assert not (tmp_path / f".{name}.part").exists()


def test_cifar_is_downloaded_checked_and_converted(
    cifar_folder: tuple[str, Path, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder, arrays = cifar_folder
    archive = packed(folder, ARCHIVES[name])
    served = tmp_path / "served"
    served.mkdir()
    archive = archive.rename(served / archive.name)
    monkeypatch.setitem(cifar.SHA256, name, sha256(archive))
    monkeypatch.setattr(CIFAR10, "tgz_md5", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=served)) as server:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        Thread(target=server.serve_forever).start()
        try:
            said = prepared(name, tmp_path / "data")
        finally:
            server.shutdown()
    assert said[0] == f"cifar10: downloading {CIFAR10.url}"
    assert_loads(name, tmp_path / "data", arrays)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        ".cifar10.lock",
        "cifar10.npz",
        "cifar10.npz.sha256",
    ]


def test_a_changed_pickle_is_never_opened(cifar_folder: tuple[str, Path, Arrays], tmp_path: Path) -> None:
    name, folder, _ = cifar_folder
    (folder / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch /nowhere/pwned'\ntR.")
    with pytest.raises(UserError) as caught:
        data.prepare(name, tmp_path, lambda _: None)
    assert str(caught.value) == (
        f"data=cifar10: {folder} is not as published (Dataset not found or corrupted.); remove it, and get it again"
    )
    assert not (tmp_path / "cifar10.npz").exists()


def test_without_a_network_one_line_says_where_to_put_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody answers
    with pytest.raises(
        UserError, match=r"^data=cifar10: the download failed .*; put cifar-10-python.tar.gz into"
    ) as caught:
        data.prepare("cifar10", tmp_path, lambda _: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".cifar10.part").exists()


@pytest.mark.parametrize("archived", [False, True])
def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archived: bool) -> None:
    folder = tmp_path / "stl10_binary"
    arrays, sums = write_stl10(folder)
    monkeypatch.setattr(STL10, "train_list", [[file, sums.get(file, "none")] for file, _ in STL10.train_list])
    monkeypatch.setattr(STL10, "test_list", [[file, sums[file]] for file, _ in STL10.test_list])
    if archived:
        monkeypatch.setattr(stl10, "SHA256", sha256(packed(folder, STL10.filename)))
    data.prepare("stl10", tmp_path, lambda _: None)
    assert_loads("stl10", tmp_path, arrays)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, sums = write_svhn(tmp_path)
    splits = {part: [url, file, sums.get(part)] for part, (url, file, _) in SVHN.split_list.items()}
    monkeypatch.setattr(SVHN, "split_list", splits)
    with pytest.raises(UserError, match=r"^data=svhn: .*train_32x32.mat is not the published file"):
        data.prepare("svhn", tmp_path, lambda _: None)
    for part in ("train", "test"):
        monkeypatch.setitem(svhn.SHA256, part, sha256(tmp_path / f"{part}_32x32.mat"))
    data.prepare("svhn", tmp_path, lambda _: None)
    assert 0 in arrays["train_labels"]
    assert_loads("svhn", tmp_path, arrays)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    arrays = some_arrays(28, 1, 10)
    for key, file in idx.FILES.items():
        path = tmp_path / "MNIST" / "raw" / file
        content = write_idx(path, arrays[key][:, 0] if key.endswith("images") else arrays[key])
        monkeypatch.setitem(mnist.SHA256, key, sha256(path))
        if zipped:
            path.unlink()
            path.with_name(f"{file}.gz").write_bytes(gzip.compress(content))
    data.prepare("mnist", tmp_path, lambda _: None)
    assert_loads("mnist", tmp_path, arrays)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    data.prepare("digits", tmp_path, lambda _: None)
    train, test = data.load("digits", tmp_path)
    assert np.bincount(test.labels).tolist() == [digits.TEST_IMAGES_PER_CLASS] * 10
    assert np.bincount(np.r_[train.labels, test.labels]).tolist() == np.bincount(bunch.target).tolist()
    ones = bunch.images[bunch.target == 1]
    found = np.concatenate([images.images[images.labels == 1, 0] for images in (train, test)])
    np.testing.assert_array_equal(np.rint(found / 255 * 16), ones)
    facts = folders.shipped_facts("digits")
    pixels = train.images / 255
    assert facts["mean"] == [pytest.approx(pixels.mean(), abs=1e-4)]
    assert facts["std"] == [pytest.approx(pixels.std(), abs=1e-4)]


def test_digits_without_scikit_learn_name_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from mixersweep import cli; sys.exit(cli.main(['data', 'prepare', 'digits']))"
    )
    environment = {**os.environ, "MIXERSWEEP_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert "pip install 'mixersweep[digits]'" in done.stderr


@pytest.mark.parametrize("name", CONVERTED)
def test_the_size_in_the_list_is_that_of_the_file(name: str) -> None:
    facts, source = folders.shipped_facts(name), data.REGISTRY[name]
    assert isinstance(source, data.Source)
    if source.fetch:
        pixels = facts["image_channels"] * facts["native_size"] ** 2
        size = (facts["train_images"] + facts["test_images"]) * (pixels + 1)
        assert size < source.size_bytes < size + 4000


@pytest.mark.parametrize("name", data.REGISTRY)
def test_facts_are_complete(name: str) -> None:
    facts = yaml.safe_load((ROOT / "configs/data" / f"{name}.yaml").read_text())
    assert facts["name"] == name
    assert len(facts["mean"]) == len(facts["std"]) == facts["image_channels"]
    assert facts["flip"] == (name not in ("mnist", "svhn", "digits"))
    if name.startswith(("cifar", "stl")):
        assert facts["crop_padding"] == 4


# --- folders of images -------------------------------------------------------------------------------------------


def mixersweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mixersweep", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_an_image_folder_tells_its_settings(tmp_path: Path) -> None:
    write_tree(tmp_path / "my birds", {"train": 4, "test": 2, "val": 1}, ("crow", "jay", "owl"))
    done = mixersweep("data", "prepare", "image_folder", "--root", str(tmp_path / "my birds"))
    assert done.returncode == 0
    *settings, content = shlex.split(done.stdout)
    assert settings == [
        "data=image_folder",
        f"data.root='{tmp_path / 'my birds'}'",
        *("data.classes=3", "data.train_images=12", "data.test_images=6"),
    ]
    assert re.fullmatch("data.content=[0-9a-f]{16}-[0-9a-f]{16}", content)


def test_images_of_one_size_are_told(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2, "val": 1}, ("a", "b"), size=(48, 48))
    tree = folders.read_tree("image_folder", folders.IMAGE_FOLDER, tmp_path)
    assert folders.settings_of("image_folder", tmp_path, *tree)["data.native_size"] == 48
    assert "data.native_size" not in folders.settings_of("image_folder", tmp_path, *odd_tree(tmp_path / "odd"))


def odd_tree(root: Path) -> tuple[folders.Tree, folders.Tree]:
    write_tree(root, {"train": 1, "val": 1}, ("a", "b"), size=(48, 47))
    return folders.read_tree("image_folder", folders.IMAGE_FOLDER, root)


def test_content_is_that_of_the_images_wherever_they_are(tmp_path: Path) -> None:
    write_tree(tmp_path / "here", {"train": 2, "val": 1}, ("a", "b"))
    first = folders.content_hash(*folders.read_tree("image_folder", folders.IMAGE_FOLDER, tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "there/train/a/notes.txt").write_text("no image")
    assert folders.content_hash(*folders.read_tree("image_folder", folders.IMAGE_FOLDER, tmp_path / "there")) == first
    (tmp_path / "there/train/a/a_0.png").rename(tmp_path / "there/train/a/a_9.png")
    assert folders.content_hash(*folders.read_tree("image_folder", folders.IMAGE_FOLDER, tmp_path / "there")) != first


def test_imagenet_says_what_it_wants_and_checks_it(tmp_path: Path) -> None:
    done = mixersweep("data", "prepare", "imagenet", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert (
        f"{tmp_path}/imagenet is no folder with train/ and val/, each with one folder of images a class" in done.stderr
    )
    write_tree(tmp_path / "imagenet", {"train": 2, "val": 1}, ("n01440764", "n01443537"), form="JPEG")
    done = mixersweep("data", "prepare", "imagenet", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "data.classes=1000, data.train_images=1281167, data.test_images=50000" in done.stderr
    assert (
        "data.classes=2 data.train_images=4 data.test_images=2; for a part of it use data=image_folder" in done.stderr
    )
    listed = {row.name: row for row in data.listing(tmp_path)}
    assert (listed["imagenet"].ready, listed["imagenet"].where) == (True, str(tmp_path / "imagenet"))
    assert not listed["image_folder"].ready
    assert listed["image_folder"].where.startswith(
        "wants train/ and test/ or val/, each with one folder of images a class"
    )


def test_trees_that_cannot_be_are_refused(tmp_path: Path) -> None:
    def refusal(root: Path) -> str:
        with pytest.raises(UserError) as caught:
            folders.read_tree("imagenet", folders.IMAGENET, root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(DataMissing):
        folders.read_tree("imagenet", folders.IMAGENET, tmp_path)
    write_tree(tmp_path / "a", {"train": 1}, ("x", "y", "z"))
    write_tree(tmp_path / "a", {"val": 1}, ("x", "z"))
    assert refusal(tmp_path / "a").endswith("only train/ has the class y; both sides need the same classes")
    write_tree(tmp_path / "flat", {"train": 1}, ("x", "y"))
    (tmp_path / "flat/val").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat/val/ILSVRC2012_val_00000001.JPEG")
    assert "val needs one folder of images a class" in refusal(tmp_path / "flat")
    (tmp_path / "flat/val/x").mkdir()
    assert "val needs one folder of images a class (Found no valid file" in refusal(tmp_path / "flat")


def test_a_folder_is_not_asked_for_where_there_is_none(tmp_path: Path) -> None:
    done = mixersweep("data", "prepare", "cifar10", "--root", str(tmp_path))
    assert done.returncode == 2
    assert "cifar10 is no folder of images" in done.stderr
    with pytest.raises(UserError, match="not loaded whole"):
        data.load("imagenet", tmp_path)
