"""The two loaders that are compared load the same: equal images without augmentation, equal shapes with it."""

from collections.abc import Iterable, Iterator

import pytest
import torch

from mixersweep.bench import loader
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
def test_both_augment_what_they_hand_over(augment: str) -> None:
    images, config = some_images(200), cifar_config(augment)
    ours = batches_of(config, images, CPU)
    for epoch in (lambda: ours.batches(BATCH, None, 0), lambda: dataloader(images, config, CPU)):
        batches = list(epoch())
        assert [(x.shape, y.shape) for x, y in batches] == [((128, 3, 32, 32), (128,)), ((72, 3, 32, 32), (72,))]
        assert sorted(torch.cat([y for _, y in batches]).tolist()) == sorted(images.labels.tolist())
    plain = torch.cat([x for x, _ in ours.batches(BATCH, None, None)])
    changed = torch.cat([x for x, _ in ours.batches(BATCH, None, 0)])
    assert sum(not torch.equal(one, other) for one, other in zip(plain, changed, strict=True)) > 150


@pytest.mark.parametrize("augment", ["crop_flip", "auto_augment"])
@pytest.mark.parametrize("make", [Ours, Theirs])
def test_what_is_timed_is_an_epoch_each_time(make: type, augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("batches_of", "dataloader"):
        original = getattr(loader, name)
        monkeypatch.setattr(loader, name, lambda *a, original=original, **k: Counted(original(*a, **k), taken))
    epoch = make(images=200, augment=augment)(CPU)
    for times in (1, 2):
        epoch()
        assert taken == [128, 72] * times


class Counted:
    """Batches, and of which size those were that somebody took."""

    def __init__(self, inner: object, taken: list[int]) -> None:
        self.inner, self.taken = inner, taken

    def batches(self, *arguments: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from self.seen(self.inner.batches(*arguments))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from self.seen(self.inner)

    def seen(self, batches: Iterable) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in batches:
            self.taken.append(len(x))
            yield x, y
