"""Folders of images as people have them: other data under the same names, pictures of other kinds."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixersweep.compose import config_of
from mixersweep.data import folders
from mixersweep.data.splits import open_splits
from mixersweep.errors import UserError
from tests.data.layouts import write_tree
from tests.strangers.conftest import Command

TRAINED = ("tracking=none", "epochs=1", "threads=1", "connections=4096", "depth=1", "device=cpu", "workers=0")
SMALL = (*TRAINED, "image_size=32", "patch_size=4", "augment=none", "validation=0", "batch_size=4")


def content(root: Path) -> str:
    return folders.content_hash(*folders.read_tree("image_folder", folders.IMAGE_FOLDER, root))


def negatives(root: Path) -> None:
    """Every image becomes another of as many bytes under its old name."""
    for path in root.rglob("*.bmp"):
        pixels = np.array(Image.open(path))
        size = path.stat().st_size
        Image.fromarray(255 - pixels).save(path)
        assert path.stat().st_size == size


def prepared(mixersweep: Command, root: str) -> list[str]:
    code, out, _ = mixersweep("data", "prepare", "image_folder", "--root", root)
    assert code == 0
    return shlex.split(out)


def test_other_images_under_the_same_names_are_another_experiment(mixersweep: Command, here: Path) -> None:
    for root in ("one", "other"):
        write_tree(here / root, {"train": 4, "val": 2}, ("a", "b"), size=(32, 32), form="bmp")
    negatives(here / "other")
    records = []
    for root in ("one", "other"):
        code, out, said = mixersweep("train", *prepared(mixersweep, root), *SMALL)
        assert code == 0 and "already done" not in said
        records.append(json.loads(Path(out.strip()).read_text()))
    assert records[0]["fingerprint"] != records[1]["fingerprint"]
    assert records[0]["train_loss"] != records[1]["train_loss"]
    code, out, said = mixersweep("train", *prepared(mixersweep, "one"), *SMALL)  # and the first is there still
    assert code == 0 and "already done" in said and "saw the images" not in said
    assert json.loads(Path(out.strip()).read_text()) == records[0]


def test_the_same_images_elsewhere_are_the_same_experiment_and_that_is_said(mixersweep: Command, here: Path) -> None:
    write_tree(here / "one", {"train": 4, "val": 2}, ("a", "b"), size=(32, 32))
    assert mixersweep("train", *prepared(mixersweep, "one"), *SMALL)[0] == 0
    (here / "one").rename(here / "moved")
    code, _, said = mixersweep("train", *prepared(mixersweep, "moved"), *SMALL)
    assert code == 0
    assert f"; it saw the images in {here}/one, not those in {here}/moved" in said


def test_a_run_that_knows_the_names_alone_goes_on_and_says_so(mixersweep: Command, here: Path) -> None:
    """As runs were told their content before that was more than names."""
    for root in ("one", "other"):
        write_tree(here / root, {"train": 4, "val": 2}, ("a", "b"), size=(32, 32))
    old = [word.partition("-")[0] if word.startswith("data.content=") else word for word in prepared(mixersweep, "one")]
    assert mixersweep("train", *old, *SMALL)[0] == 0
    code, _, said = mixersweep("train", *old, f"data.root={here}/other", *SMALL)
    assert code == 0
    assert "it saw the images of these names (data prepare tells their content too) in" in said


@pytest.mark.parametrize("form", ["bmp", "png"])
def test_content_changes_with_a_picture_and_not_with_its_place(here: Path, form: str) -> None:
    write_tree(here / "one", {"train": 3, "test": 2}, ("a", "b"), size=(20, 20), form=form)
    before = content(here / "one")
    (here / "one").rename(here / "two")
    assert content(here / "two") == before
    path = here / f"two/test/b/b_1.{form}"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
    changed = content(here / "two")
    assert changed.partition("-")[0] == before.partition("-")[0]
    assert changed != before


def test_a_file_that_cannot_be_read_is_named(here: Path) -> None:
    write_tree(here / "one", {"train": 3, "test": 2}, ("a", "b"), size=(20, 20))
    (here / "one/train/a/a_3.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"train/a/a_3.png: cannot be read \(No such file or directory\)"):
        content(here / "one")


def pixels_of(root: Path, *overrides: str) -> list[np.ndarray]:
    """The pictures of ``root``'s test side as a network would see them, but for the normalisation."""
    found = folders.prepare("image_folder", folders.IMAGE_FOLDER, root, lambda _: None)
    words = [f"{key}={value}" for key, value in found.items()]
    plain = [
        "data.mean=[0,0,0]",
        "data.std=[1,1,1]",
        "data.fit=pad",
        "data.crop_share=1",
        "augment=none",
        "validation=0",
    ]
    config = config_of([*words, *plain, "image_size=16", "patch_size=4", *overrides])
    batches = open_splits(config, torch.device("cpu")).test.batches(1, None, None)
    return [np.round(255 * images[0].numpy()).astype(int) for images, _ in batches]


RAMP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_16_bits_are_seen_with_all_their_greys(here: Path, form: str, channels: int) -> None:
    write_tree(here, {"train": 1, "test": 1}, ("a", "b"), size=(16, 16), form=form if form != "pgm" else "png")
    for path in list(here.rglob("*.*")):
        path.unlink()
        Image.fromarray(RAMP).save(path.with_suffix(f".{form}"))
    grey = ("data.image_channels=1", "data.mean=[0]", "data.std=[1]") if channels == 1 else ()
    for picture in pixels_of(here, *grey):
        assert picture.shape == (channels, 16, 16)
        assert all(np.array_equal(channel, np.arange(256).reshape(16, 16)) for channel in picture)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pictures_of_an_unknown_range_are_refused_by_name(here: Path, kind: type) -> None:
    write_tree(here, {"train": 1, "test": 1}, ("a", "b"), size=(16, 16), form="tif")
    Image.fromarray(RAMP.astype(kind)).save(here / "test/b/b_0.tif")
    with pytest.raises(UserError, match=r"test/b/b_0.tif cannot be read \(its pixels are of mode [IF], whose range"):
        pixels_of(here)


def test_pictures_of_8_bits_are_what_they_were(here: Path) -> None:
    written = write_tree(here, {"train": 1, "test": 1}, ("a", "b"), size=(16, 16))
    for seen, (_, pixels) in zip(pixels_of(here), written["test"], strict=True):
        assert np.array_equal(seen, pixels.transpose(2, 0, 1))


def test_what_file_managers_and_notebooks_leave_is_not_there(here: Path) -> None:
    write_tree(here, {"train": 2, "val": 1}, ("a", "b"), size=(16, 16))
    before = content(here)
    for folder in (".ipynb_checkpoints", "__MACOSX", "a/.thumbnails"):
        (here / "train" / folder).mkdir()
        Image.new("RGB", (8, 8)).save(here / "train" / folder / "x.png")
    for name in ("train/a/._a_0.png", "train/a/.DS_Store", "val/b/.hidden.png", "train/.DS_Store"):
        (here / name).write_bytes(b"\x00\x05\x16\x07")
    assert content(here) == before
    assert folders.settings_of("image_folder", here, *folders.read_tree("image_folder", folders.IMAGE_FOLDER, here))


@pytest.mark.parametrize("written", [b"<!DOCTYPE html><html></html>", b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00"])
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
def test_a_file_that_is_no_picture_is_one_line(mixersweep: Command, here: Path, written: bytes, form: str) -> None:
    write_tree(here / "one", {"train": 2, "val": 1}, ("a", "b"), size=(32, 32))
    bad = here / f"one/train/a/00.{form}"
    bad.write_bytes(written)
    code, out, said = mixersweep("data", "prepare", "image_folder", "--root", "one")
    assert (code, out) == (2, "")
    assert said.splitlines()[-1].startswith(f"mixersweep: error: data=image_folder: {bad} cannot be read (")
    assert said.endswith("); mend or remove it\n") and "Traceback" not in said


def test_a_picture_that_is_too_large_is_one_line(
    mixersweep: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(here / "one", {"train": 2, "val": 1}, ("a", "b"), size=(32, 32))
    words = prepared(mixersweep, "one")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # twice as many are an error of Pillow's
    code, _, said = mixersweep("train", *words, *SMALL)
    assert code == 2
    assert "cannot be read (Image size (1024 pixels) exceeds limit of 1000 pixels" in said and "Traceback" not in said
    code, _, said = mixersweep("data", "prepare", "image_folder", "--root", "one")
    assert (code, "Traceback" in said) == (2, False)
