"""What a training run takes its batches from: every kind of data set, whatever reads it, one interface."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from mixersweep.compose import config_of
from mixersweep.config import Config
from mixersweep.data import folders
from mixersweep.data.batches import Batches, DeviceImages, rank_positions
from mixersweep.data.source import write
from mixersweep.data.splits import Splits, open_splits
from mixersweep.data.stream import LoaderFailed, Stream, choose_workers
from mixersweep.data.views import View, fit_all, seeding_restored
from mixersweep.errors import DataMissing, UserError
from mixersweep.seeds import derive
from tests.data.layouts import Arrays, some_arrays, write_tree
from tests.speed import HANGS

CPU = torch.device("cpu")
FACTS = ["data.train_images=60", "data.test_images=20"]
AUGMENTS = [
    ["augment=crop_flip", "augment.erasing=0.5"],
    ["augment=auto_augment"],
    ["augment=imagenet_timm"],
]


@pytest.fixture
def workers() -> Callable[[], list[psutil.Process]]:
    """The live processes that a test has started; multiprocessing's tracker may be there from another."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture
def cifar(tmp_path: Path) -> tuple[list[str], Arrays]:
    """Overrides for a small data set in CIFAR-10's place, and its arrays."""
    arrays = some_arrays(32, 3, 10, 60, 20)
    write_set(tmp_path, "cifar10", arrays)
    return ["data=cifar10", *FACTS, f"data_dir={tmp_path}"], arrays


def write_set(folder: Path, name: str, arrays: Arrays) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    write(folder / f"{name}.npz", arrays, scratch)


@pytest.fixture
def tree(tmp_path: Path) -> list[str]:
    """Overrides for a small folder of images."""
    write_tree(tmp_path / "tree", {"train": 10, "test": 4}, ("a", "b", "c"))
    found = folders.prepare("image_folder", folders.IMAGE_FOLDER, tmp_path / "tree", lambda _: None)
    return [*(f"{key}={value}" for key, value in found.items()), "image_size=32", "patch_size=4", "validation=0.2"]


def opened(*overrides: str, workers: int = 0) -> tuple[Config, Splits]:
    config = config_of(list(overrides))
    return config, open_splits(config, CPU, workers=workers)


def epoch(batches: Batches, size: int = 16, order: int | None = 1, augment: int | None = 2) -> tuple[Tensor, Tensor]:
    found = list(batches.batches(size, order, augment))
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


# --- whatever the augmentation and the data set ------------------------------------------------------------------


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda a: a[0])
def test_batches_depend_neither_on_workers_nor_ranks_nor_where_they_begin(
    cifar: tuple[list[str], Arrays], augment: list[str]
) -> None:
    _, alone = opened(*cifar[0], *augment)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    whole = list(alone.train.batches(16, 3, 4))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert [x.shape for x, _ in whole] == [(16, 3, 32, 32)] * 3 + [(2, 3, 32, 32)]
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in whole)
    x, y = epoch(alone.train, 7, 3, 5)
    assert not torch.equal(x, torch.cat([x for x, _ in whole]))
    assert torch.equal(y, torch.cat([y for _, y in whole]))

    _, others = opened(*cifar[0], *augment, workers=2)
    for step, (x, y) in enumerate(others.train.batches(16, 3, 4, first_step=1), start=1):
        assert torch.equal(x, whole[step][0])
        assert torch.equal(y, whole[step][1])
    assert step == 3
    ranks = [list(others.train.batches(16, 3, 4, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(batches[-1][1]) for batches in ranks] == [2, 0, 0, 0]
    for step, (x, y) in enumerate(whole):
        for rank in range(4):
            assert torch.equal(ranks[rank][step][0], x[rank_positions(len(y), rank, 4)])
            assert torch.equal(ranks[rank][step][1], y[rank_positions(len(y), rank, 4)])
    others.close()


def test_a_rank_may_have_none_of_the_last_batch(tree: list[str]) -> None:
    _, splits = opened(*tree, "validation=0")
    last = [list(splits.train.batches(29, 0, 0, rank=rank, world_size=2))[-1] for rank in (0, 1)]
    assert [x.shape for x, _ in last] == [(1, 3, 32, 32), (0, 3, 32, 32)]
    assert [y.shape for _, y in last] == [(1,), (0,)]


def test_splits_are_the_same_however_images_are_read(cifar: tuple[list[str], Arrays]) -> None:
    overrides, arrays = cifar
    _, plain = opened(*overrides, "augment=none")
    _, crops = opened(*overrides, "augment=auto_augment")
    assert [len(s) for s in (plain.train, plain.validation, plain.test)] == [50, 10, 20]
    assert isinstance(plain.train, DeviceImages)
    assert isinstance(crops.train, Stream)
    assert isinstance(crops.test, DeviceImages)  # which no policy touches
    for a, b in ((plain.train, crops.train), (plain.validation, crops.validation), (plain.test, crops.test)):
        (x, y), (same, labels) = (epoch(batches, 16, 5, None) for batches in (a, b))
        assert torch.equal(x, same)
        assert torch.equal(y, labels)
    assert epoch(plain.test, 16, None, None)[1].tolist() == arrays["test_labels"].tolist()


@pytest.mark.parametrize("augment", ["none", "imagenet_timm"])
def test_a_folder_of_images_from_files_to_batches(tree: list[str], augment: str, tmp_path: Path) -> None:
    config, splits = opened(*tree, f"augment={augment}")
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [24, 6, 12]
    x, y = epoch(splits.test, 5, None, None)
    assert y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    reference = transforms.Compose(
        [
            transforms.Resize(37, transforms.InterpolationMode.BICUBIC),  # 32 / 0.875
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(config.data.mean, config.data.std),
        ]
    )
    files = sorted((tmp_path / "tree/test").glob("*/*.png"))
    expected = torch.stack([reference(Image.open(file).convert("RGB")) for file in files])
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
    seen, labels = epoch(splits.train)
    assert np.bincount(labels).tolist() == [8, 8, 8]
    assert torch.equal(epoch(splits.train)[0], seen)
    assert torch.equal(epoch(splits.train, augment=9)[0], seen) == (augment == "none")


def test_an_epoch_within_an_epoch_and_one_that_is_left(
    cifar: tuple[list[str], Arrays], workers: Callable[[], list[psutil.Process]]
) -> None:
    _, splits = opened(*cifar[0], "augment=auto_augment", workers=1)
    whole = epoch(splits.train)[0]
    pairs = list(zip(splits.train.batches(16, 1, 2), splits.train.batches(16, 1, 2), strict=True))
    assert torch.equal(torch.cat([a for (a, _), _ in pairs]), whole)
    assert torch.equal(torch.cat([b for _, (b, _) in pairs]), whole)
    left = splits.train.batches(16, 7, 8)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert torch.equal(epoch(splits.train)[0], whole)
    splits.close()
    assert torch.equal(epoch(splits.train)[0], whole)
    splits.close()
    assert not workers()


# --- augmentation is torchvision's and timm's --------------------------------------------------------------------


def test_auto_augment_is_torchvisions(cifar: tuple[list[str], Arrays]) -> None:
    config, splits = opened(*cifar[0], "augment=auto_augment", "validation=0")
    x, _ = epoch(splits.train, order=None, augment=6)
    chain = transforms.v2.Compose(
        [
            transforms.v2.RandomCrop(32, padding=4),
            transforms.v2.RandomHorizontalFlip(),
            transforms.v2.AutoAugment(transforms.v2.AutoAugmentPolicy.CIFAR10),
            transforms.PILToTensor(),
        ]
    )
    for index in (0, 7, 59):
        with seeding_restored() as seed:
            seed(derive(6, index))
            expected = chain(Image.fromarray(cifar[1]["train_images"][index].transpose(1, 2, 0)))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.data.mean, config.data.std))
        torch.testing.assert_close(x[index], (expected / 255 - mean) / std, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_imagenet_recipe_is_timms(channels: int) -> None:
    from timm.data import create_transform

    data = ["data.image_channels=1", "data.mean=[0.5]", "data.std=[0.5]"] if channels == 1 else []
    overrides = ["data=imagenet", *data, "augment=imagenet_timm", "augment.policy=none", "image_size=48"]
    config = config_of([*overrides, "augment.rand_augment=rand-m5-mstd0.5-inc1"])  # 9: timm's own fails with Pillow 13
    pixels = np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    theirs = create_transform(
        48, is_training=True, auto_augment=None, color_jitter=None, interpolation="random", normalize=False
    )  # type: ignore
    if channels == 3:
        theirs = create_transform(
            48, is_training=True, auto_augment=config.augment.rand_augment, interpolation="random", normalize=False
        )  # type: ignore
        config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, policy="rand_augment"))
    view = View(config.data, config.augment, 48)
    for number in range(20):
        with seeding_restored() as seed:
            seed(number)
            ours = view.augmented(picture)
            seed(number)
            expected = theirs(picture)
        assert ours.shape == (channels, 48, 48)
        assert torch.equal(ours, torch.as_tensor(np.asarray(expected)))


@pytest.mark.parametrize("policy", ["auto_augment", "rand_augment"])
@pytest.mark.parametrize("data", ["fashion_mnist_10k", "cifar10"])
def test_policies_take_grey_and_colour_through_all_they_can_draw(policy: str, data: str) -> None:
    config = config_of([f"data={data}", f"augment.policy={policy}", "augment.rand_augment=rand-m9-mstd3-inc1"])
    view = View(config.data, config.augment, 32)
    size, channels = config.data.native_size, config.data.image_channels
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    with seeding_restored() as seed:
        for number in range(300):
            seed(number)
            assert view.augmented(picture).shape == (channels, 32, 32)


# --- resizing ----------------------------------------------------------------------------------------------------


def test_stl10_is_resized_as_torchvision_does_it(tmp_path: Path) -> None:
    arrays = some_arrays(96, 3, 10, 40, 10)
    write_set(tmp_path, "stl10", arrays)
    overrides = ["data=stl10", "data.train_images=40", "data.test_images=10", f"data_dir={tmp_path}", "validation=0.25"]
    config, splits = opened(*overrides, "augment=none")
    assert (config.image_size, config.patch_size) == (32, 4)
    x, _ = epoch(splits.test, order=None, augment=None)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.data.mean, config.data.std))
    for pixels, image in zip(arrays["test_images"], x, strict=True):
        resized = transforms.Resize(32)(Image.fromarray(pixels.transpose(1, 2, 0)))
        expected = transforms.functional.pil_to_tensor(resized)
        assert (image * std + mean - expected / 255).abs().max() < 1.01 / 255  # rounded elsewhere
    assert [x.shape[2] for x, _ in opened(*overrides, "image_size=90", "patch_size=10")[1].train.batches(40, 0, 0)] == [
        90
    ]
    for augment in ("crop_flip", "auto_augment", "imagenet_timm"):
        assert epoch(opened(*overrides, f"augment={augment}")[1].train)[0].shape == (30, 3, 32, 32)


def test_arrays_may_be_cropped_from_their_middle(tmp_path: Path) -> None:
    config = config_of(["data=stl10", "data.fit=crop", "data.crop_share=0.5", "image_size=48"])
    from mixersweep.data import Images

    images = Images(some_arrays(96, 3, 10)["test_images"], np.zeros(10, np.int64))
    np.testing.assert_array_equal(fit_all(images, config.data, 48).images, images.images[:, :, 24:72, 24:72])


# --- what is not as the settings say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("data.train_images=50000", "data.train_images=50000: the images of cifar10 have 60; set it to that"),
        ("data.test_images=10000", "data.test_images=10000: the images of cifar10 have 20; set it to that"),
        ("data.native_size=28", "data.native_size=28: the images of cifar10 have 32; set it to that"),
        ("data.classes=7", "data.classes=7: cifar10 has labels up to 9; use 10"),
    ],
)
def test_arrays_that_are_not_what_was_planned_are_refused(
    cifar: tuple[list[str], Arrays], wrong: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        opened(*cifar[0], wrong)
    assert str(caught.value) == message


def test_a_tree_that_is_not_what_was_planned_is_refused(tree: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.train_images=31: .*/tree has data.train_images=30$"):
        opened(*tree, "data.train_images=31")
    (tmp_path / "tree/test/a/a_0.png").rename(tmp_path / "tree/test/a/new.png")
    with pytest.raises(UserError, match=r"^data.content=[0-9a-f-]{33}: .*/tree has data.content=[0-9a-f-]{33}$"):
        opened(*tree)
    with pytest.raises(DataMissing, match="/nowhere is no folder with train/ and test/ or val/"):
        opened(*tree, "data.root=/nowhere")
    with pytest.raises(UserError, match=r"^data.classes=1000, .*; for a part of it use data=image_folder$"):
        (tmp_path / "tree/test").rename(tmp_path / "tree/val")
        opened("data=imagenet", f"data.root={tmp_path / 'tree'}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(tree: list[str], tmp_path: Path, workers: int) -> None:
    (tmp_path / "tree/test/b/b_1.png").write_bytes(b"no image")
    names = folders.names_hash(*folders.read_tree("image_folder", folders.IMAGE_FOLDER, tmp_path / "tree"))
    _, splits = opened(*tree, f"data.content={names}", workers=workers)
    with pytest.raises(UserError) as caught:
        epoch(splits.test)
    assert str(caught.value).startswith(f"data=image_folder: {tmp_path}/tree/test/b/b_1.png cannot be read (")
    assert "\n" not in str(caught.value)
    assert len(epoch(splits.train)[0]) == 24  # the others go on
    splits.close()


def test_an_image_of_another_size_is_named(tree: list[str], tmp_path: Path) -> None:
    _, splits = opened(*tree, "data.native_size=48", "data.fit=resize", "data.crop_share=1")
    with pytest.raises(UserError, match=r"^data.native_size=48: .*/tree/test/a/a_0.png has \d+x\d+ pixels; use null"):
        epoch(splits.test, order=None)


# --- processes ---------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_one_clear_line(
    cifar: tuple[list[str], Arrays], workers: Callable[[], list[psutil.Process]]
) -> None:
    _, splits = opened(*cifar[0], "augment=auto_augment", workers=2)
    assert not workers()
    batches = splits.train.batches(2, 1, 2)
    next(batches)
    workers()[0].send_signal(signal.SIGKILL)
    with pytest.raises(
        LoaderFailed, match=r"^workers=2: a process that reads images died .*lower workers or batch_size$"
    ):
        list(batches)
    assert not workers()
    assert len(epoch(splits.train)[0]) == 50
    splits.close()


PROGRAM = """
import os, signal, sys, time, torch
from mixersweep.compose import config_of
from mixersweep.data.splits import open_splits
splits = open_splits(config_of(sys.argv[2:]), torch.device("cpu"), workers=2)
batches = splits.train.batches(4, 1, 2)
next(batches)
if sys.argv[1] == "signals":
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
        os.killpg(0, name)
    time.sleep(0.5)
    print(sum(len(y) for _, y in batches), flush=True)
elif sys.argv[1] == "raises":
    raise ValueError("of the trainer")
elif sys.argv[1] == "waits":
    import psutil
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(60)
"""


def program(what: str, overrides: list[str]) -> "subprocess.Popen[str]":
    torchs = "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"  # 2.6 leaves one to the end
    command = [sys.executable, "-W", "error", "-W", torchs, "-c", PROGRAM, what, *overrides, "augment=auto_augment"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def test_workers_leave_signals_to_the_trainer(cifar: tuple[list[str], Arrays]) -> None:
    process = program("signals", cifar[0])
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out, err) == (0, "46\n", "")


def test_a_trainer_that_fails_in_an_epoch_ends_at_once(cifar: tuple[list[str], Arrays]) -> None:
    process = program("raises", cifar[0])
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert err.count("Traceback") == 1
    assert err.endswith("ValueError: of the trainer\n")


def test_workers_do_not_outlive_a_killed_trainer(cifar: tuple[list[str], Arrays]) -> None:
    process = program("waits", cifar[0])
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + HANGS
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_workers_are_shared_among_the_trainers_of_a_machine() -> None:
    assert choose_workers(0) == 0
    assert choose_workers(3, processes=8) == 3
    cores = len(os.sched_getaffinity(0))
    assert choose_workers("auto") == min(cores, 16)
    assert choose_workers("auto", processes=1000) == 1
