"""The two loaders that are compared load the same: equal images without augmentation, equal shapes with it."""

import pytest
import torch

from mixersweep.bench.loader import BATCH, Ours, Theirs, cifar_config, dataloader, some_images
from mixersweep.data.splits import batches_of

CPU = torch.device("cpu")


def test_both_hand_over_the_same_images() -> None:
    images, config = some_images(300), cifar_config("none")
    ours = list(batches_of(config, images, CPU).batches(BATCH, None, None))
    theirs = list(dataloader(images, config, CPU))
    assert [(x.shape, x.dtype, y.dtype) for x, y in ours] == [(x.shape, x.dtype, y.dtype) for x, y in theirs]
    x, y = (torch.cat(parts) for parts in zip(*theirs, strict=True))  # shuffled: put back by their first pixels
    mine = torch.cat([x for x, _ in ours])
    places = [min(range(300), key=lambda p: float((x[p, 0, 0, :4] - image[0, 0, :4]).abs().sum())) for image in mine]
    assert sorted(places) == list(range(300))
    torch.testing.assert_close(x[places], mine, atol=1e-5, rtol=1e-5)
    assert torch.equal(y[places], torch.cat([y for _, y in ours]))


@pytest.mark.parametrize("augment", ["crop_flip", "auto_augment"])
@pytest.mark.parametrize("make", [Ours, Theirs])
def test_an_epoch_runs_again_and_again(make: type, augment: str) -> None:
    epoch = make(images=200, augment=augment)(CPU)
    epoch()
    epoch()
