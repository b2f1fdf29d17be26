"""Batches against a plain reference, one image at a time; orders, seeds and the validation split."""

import random

import numpy as np
import pytest
import torch

from mixersweep.data import Images
from mixersweep.data.batches import DeviceImages, rank_positions, split
from mixersweep.data.erasing import draw_boxes
from mixersweep.errors import UserError
from tests.gpu import no_waiting

MEAN, STD = {1: [0.3], 3: [0.1, 0.4, 0.7]}, {1: [0.5], 3: [0.2, 0.3, 0.6]}


def some_images(count: int = 50, channels: int = 1, size: int = 5) -> Images:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return Images(pixels, np.arange(count))  # a label names its image


def on_device(
    images: Images, image_size: int = 8, crop_padding: int = 2, flip: bool = True, device: str = "cpu"
) -> DeviceImages:
    channels = images.images.shape[1]
    return DeviceImages(images, image_size, crop_padding, flip, MEAN[channels], STD[channels], device)


def epoch(
    store: DeviceImages, batch_size: int, order: int | None, augment: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(store.batches(batch_size, order, augment))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def crop(image: np.ndarray, image_size: int, crop_padding: int, row: int, column: int, mirror: bool) -> np.ndarray:
    """The reference: one uint8 image (channels, size, size), padded, cropped, mirrored, normalised."""
    channels, size, _ = image.shape
    before = crop_padding + (image_size - size) // 2
    after = image_size + 2 * crop_padding - size - before
    padded = np.pad(image, ((0, 0), (before, after), (before, after)))
    cut = padded[:, row : row + image_size, column : column + image_size]
    cut = cut[:, :, ::-1] if mirror else cut
    mean, std = (np.array(values[channels])[:, None, None] for values in (MEAN, STD))
    return np.asarray((cut / 255 - mean) / std)


@pytest.mark.parametrize(("channels", "size", "image_size"), [(1, 5, 8), (3, 8, 8), (3, 5, 6)])
@pytest.mark.parametrize(("crop_padding", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_augmentation_against_the_reference(
    channels: int, size: int, image_size: int, crop_padding: int, flip: bool
) -> None:
    images = some_images(200, channels, size)
    x, y = epoch(on_device(images, image_size, crop_padding, flip), 64, 3, 4)
    used = set()
    for pixels, label in zip(x.numpy(), y.tolist(), strict=True):
        choices = {
            (row, column, mirror): crop(images.images[label], image_size, crop_padding, row, column, mirror)
            for row in range(2 * crop_padding + 1)
            for column in range(2 * crop_padding + 1)
            for mirror in ([False, True] if flip else [False])
        }
        found = [choice for choice, expected in choices.items() if np.allclose(pixels, expected, atol=1e-5)]
        assert len(found) == 1
        used.update(found)
    assert len(used) > 0.9 * len(choices)
    for values, possible in zip(zip(*used, strict=True), zip(*choices, strict=True), strict=True):
        assert set(values) == set(possible)  # every row, every column, both sides


@pytest.mark.parametrize(("channels", "size", "image_size"), [(1, 5, 8), (3, 8, 8), (1, 5, 6)])
def test_without_augmentation_the_image_is_centred(channels: int, size: int, image_size: int) -> None:
    images = some_images(7, channels, size)
    x, y = epoch(on_device(images, image_size), 3, None, None)
    assert y.tolist() == list(range(7))
    expected = np.stack([crop(image, image_size, 2, 2, 2, False) for image in images.images])
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)


def test_padding_is_black() -> None:
    x, _ = epoch(on_device(Images(np.full((1, 3, 4, 4), 255, np.uint8), np.zeros(1, np.int64)), 8), 1, None, None)
    black, white = ((value - np.array(MEAN[3])) / np.array(STD[3]) for value in (0, 1))
    np.testing.assert_allclose(x[0, :, 0, 0].numpy(), black, atol=1e-6)
    np.testing.assert_allclose(x[0, :, 3, 3].numpy(), white, atol=1e-6)
    assert (x[0, 0] > 0).sum() == 16


def test_shapes_and_the_last_batch() -> None:
    store = on_device(some_images(50, 3))
    batches = list(store.batches(16, 0, 0))
    assert [x.shape for x, _ in batches] == [(16, 3, 8, 8)] * 3 + [(2, 3, 8, 8)]
    assert [y.shape for _, y in batches] == [(16,)] * 3 + [(2,)]
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 and x.is_contiguous() for x, y in batches)
    assert len(store) == 50
    assert [len(y) for _, y in store.batches(1000, 0, 0)] == [50]


def test_every_epoch_is_a_permutation() -> None:
    store = on_device(some_images())
    orders = [epoch(store, 16, seed, None)[1].tolist() for seed in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch(store, 16, None, 5)[1].tolist() == list(range(50))


def test_seeds_decide_and_the_global_state_is_left_alone() -> None:
    store = on_device(some_images())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    (x, y), again = epoch(store, 16, 1, 2), epoch(store, 7, 1, 2)
    split(np.zeros(10, np.int64), 0.5, 0)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))  # noqa: NPY002
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert not torch.equal(x, epoch(store, 16, 1, 3)[0])
    assert torch.equal(y, epoch(store, 16, 1, 3)[1])


def test_the_order_does_not_change_an_images_augmentation() -> None:
    store = on_device(some_images())
    in_file_order, (x, y) = epoch(store, 16, None, 9)[0], epoch(store, 16, 1, 9)
    assert torch.equal(in_file_order[y], x)


def test_epochs_may_run_side_by_side() -> None:
    store = on_device(some_images())
    pairs = list(zip(store.batches(16, 1, 2), store.batches(16, 1, 2), strict=True))
    assert all(torch.equal(a[0], b[0]) for a, b in pairs)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_batches_without_waiting() -> None:
    images = some_images(200, 3)
    store, (x, y) = on_device(images, device="cuda"), epoch(on_device(images), 64, 1, 2)
    batches = store.batches(64, 1, 2)
    seen = [next(batches)]
    with no_waiting():
        seen += list(batches)
    torch.testing.assert_close(torch.cat([x for x, _ in seen]).cpu(), x)
    assert torch.equal(torch.cat([y for _, y in seen]).cpu(), y)


def test_what_does_not_fit_is_refused() -> None:
    images = some_images()
    with pytest.raises(UserError, match=r"^image_size=4: the images have 5 pixels; use 5 or more$"):
        on_device(images, image_size=4)
    with pytest.raises(UserError, match=r"^data.mean=\[0.1, 0.4, 0.7\]: 3 values for images of 1 channels$"):
        DeviceImages(images, 8, 0, False, MEAN[3], STD[1], "cpu")


# --- the validation split ----------------------------------------------------------------------------------------


def test_split_is_balanced_sorted_and_seeded() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [10, 20, 30, 45]))
    train, validation = split(labels, 0.1, 0)
    assert np.bincount(labels[validation]).tolist() == [1, 2, 3, round(4.5)]
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert all((np.diff(indices) > 0).all() and indices.dtype == np.int64 for indices in (train, validation))
    np.testing.assert_array_equal(validation, split(labels, 0.1, 0)[1])
    assert not np.array_equal(validation, split(labels, 0.1, 1)[1])
    assert len(some_images(len(labels)).subset(validation)) == len(validation)


def test_no_validation_is_an_empty_split() -> None:
    train, validation = split(np.array([0, 1, 1]), 0.0, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1, 2], [])
    store = on_device(some_images(3).subset(validation))
    assert len(store) == 0
    assert list(store.batches(16, 0, 0)) == []


@pytest.mark.parametrize(("share", "taken"), [(0.04, 0), (0.96, 10)])
def test_a_class_without_images_on_one_side_is_refused(share: float, taken: int) -> None:
    message = f"^validation={share}: of the 10 training images of class 1 it would take {taken}; use 0, or a share"
    with pytest.raises(UserError, match=message):
        split(np.repeat([0, 1], [100, 10]), share, 0)


# --- ranks, and the middle of an epoch ---------------------------------------------------------------------------


@pytest.mark.parametrize("erasing", [0.0, 0.5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_together_have_the_batches_of_one_process(world_size: int, erasing: float) -> None:
    store = DeviceImages(some_images(49, 3), 8, 2, True, MEAN[3], STD[3], "cpu", erasing)
    whole = list(store.batches(16, 3, 4))
    ranks = [list(store.batches(16, 3, 4, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(batches) for batches in ranks} == {4}
    assert [len(batches[-1][1]) for batches in ranks] == [1, *[0] * (world_size - 1)]  # the last one has one image
    for step, (x, y) in enumerate(whole):
        for rank, batches in enumerate(ranks):
            assert torch.equal(batches[step][0], x[rank_positions(len(y), rank, world_size)])
            assert torch.equal(batches[step][1], y[rank_positions(len(y), rank, world_size)])
            assert batches[step][0].shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("first_step", [0, 1, 3, 4])
def test_an_epoch_goes_on_in_its_middle(first_step: int) -> None:
    store = DeviceImages(some_images(50, 3), 8, 2, True, MEAN[3], STD[3], "cpu", 0.5)
    whole, rest = list(store.batches(16, 3, 4)), list(store.batches(16, 3, 4, first_step=first_step))
    assert len(rest) == 4 - first_step
    for (x, y), (again, labels) in zip(whole[first_step:], rest, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


# --- erasing -----------------------------------------------------------------------------------------------------


def test_erasing_changes_one_box_of_some_images_and_nothing_else() -> None:
    images = some_images(400, 3, 32)
    plain = epoch(DeviceImages(images, 32, 0, False, MEAN[3], STD[3], "cpu"), 64, 1, 2)[0]
    erased = epoch(DeviceImages(images, 32, 0, False, MEAN[3], STD[3], "cpu", 0.25), 64, 1, 2)[0]
    changed = (plain != erased).any(1)  # (N, 32, 32)
    hit = changed.flatten(1).any(1)
    assert 0.15 < hit.float().mean() < 0.35
    noise = []
    for box, pixels in zip(changed[hit], erased[hit], strict=True):
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        inside = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        assert box[inside].all()
        assert box.sum() == box[inside].numel()
        noise.append(pixels[:, *inside].flatten())
    values = torch.cat(noise)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_boxes_are_as_large_as_timms() -> None:
    from timm.data.random_erasing import RandomErasing

    boxes = draw_boxes(4000, 1.0, 1, 32, 0, torch.device("cpu"))
    theirs = RandomErasing(1.0, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
    random.seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = [theirs(torch.zeros(1, 32, 32))[0] != 0 for _ in range(4000)]  # type: ignore[no-untyped-call]
    heights = torch.tensor([int(box.any(1).sum()) for box in found]).float()
    tops = torch.tensor([int(box.any(1).nonzero()[0]) for box in found]).float()
    for ours, reference in ((boxes.height, heights), (boxes.top, tops)):
        assert abs(ours.float().mean() - reference.mean()) < 0.3
        assert abs(ours.float().std() - reference.std()) < 0.3
    assert (boxes.height * boxes.width).float().mean().item() == pytest.approx(1024 * (0.02 + 1 / 3) / 2, rel=0.03)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_both_ways_to_erase_are_one(count: int) -> None:
    boxes = draw_boxes(50, 0.5, 3, 8, 7, torch.device("cpu"))
    images, which = torch.randn(count, 3, 8, 8), torch.randperm(50)[:count]
    assert torch.equal(boxes.erase_together(images, which), boxes.erase_each(images.clone(), which))


def test_evaluation_erases_nothing() -> None:
    images = some_images(60, 3)
    plain = epoch(on_device(images), 16, None, None)[0]
    store = DeviceImages(images, 8, 2, True, MEAN[3], STD[3], "cpu", 1.0)
    assert torch.equal(epoch(store, 16, None, None)[0], plain)
