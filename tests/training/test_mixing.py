"""mixup and CutMix: what is mixed with what, the targets, and that only the arguments decide."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from timm.data.mixup import Mixup
from torch import Tensor

from mixersweep.training.mixing import Mixing
from tests.gpu import no_waiting

CLASSES = 10


def batch(size: int, image_size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, image_size, image_size, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def states() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


BOTH = {"mixup": 0.8, "cutmix": 1.0, "switch_probability": 0.5, "classes": CLASSES, "label_smoothing": 0.1}


@pytest.mark.parametrize("size", [1, 2, 7, 16])
@pytest.mark.parametrize("mixup", [0.0, 0.8])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_and_targets_are_mixed_with_one_weight(size: int, mixup: float, smoothing: float) -> None:
    """With either alone: lambda found from the targets gives the images, each with the one from the other end."""
    cutmix = 0.0 if mixup else 1.0
    images, labels = batch(size)
    for seed in range(6):
        mixed, soft = Mixing(mixup, cutmix, 0.5, CLASSES, smoothing)(images, labels, seed)
        one_hot = F.one_hot(labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
        other = one_hot.flip(0)
        assert soft.shape == (size, CLASSES)
        torch.testing.assert_close(soft.sum(1), torch.ones(size))
        apart = (one_hot != other).any(1)
        weight = 1.0
        if apart.any():
            weight = ((soft - other)[apart] / (one_hot - other)[apart]).nanmean().item()
        torch.testing.assert_close(soft, weight * one_hot + (1 - weight) * other)
        if mixup and apart.any():
            torch.testing.assert_close(mixed, weight * images + (1 - weight) * images.flip(0))
        if not mixup:
            theirs = (mixed != images).any(1)  # (B, H, W): a box, the same in all
            assert torch.equal(torch.where(theirs[:, None], images.flip(0), images), mixed)
            if apart.any():
                box = (mixed != images).any(1).any(0)
                assert box.sum().item() == pytest.approx((1 - weight) * 64, abs=1e-3)


def test_it_is_timms_with_its_random_state_set() -> None:
    images, labels = batch(16)
    theirs = Mixup(0.8, 1.0, None, 1.0, 0.5, "batch", True, 0.1, CLASSES)  # type: ignore[no-untyped-call]
    weights = set()
    for seed in range(20):
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed([seed, 0])  # noqa: NPY002
        expected, targets = theirs(images.clone(), labels)  # type: ignore[no-untyped-call]
        np.random.set_state(before)  # noqa: NPY002
        mixed, soft = Mixing(**BOTH)(images, labels, seed)
        assert torch.equal(mixed, expected)
        assert torch.equal(soft, targets)
        weights.add(round(soft.max().item(), 6))
    assert len(weights) > 10


def test_only_the_arguments_decide_and_nothing_else_is_touched() -> None:
    images, labels = batch(8)
    kept = images.clone()
    mixing = Mixing(**BOTH)
    before = states()
    first = mixing(images, labels, 2**62 + 5)
    assert states() == before
    assert torch.equal(images, kept)
    np.random.seed(3)  # noqa: NPY002
    torch.rand(7)
    random.random()
    again = Mixing(**BOTH)(images, labels, 2**62 + 5)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for seed in (2**62 + 6, 5):  # all 63 bits count
        assert not torch.equal(mixing(images, labels, seed)[0], first[0])


@pytest.mark.parametrize(("switch", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_cutmix_takes_the_place_of_mixup_with_the_switch_probability(switch: float, share: float) -> None:
    images, labels = batch(4)
    mixing = Mixing(0.8, 1.0, switch, CLASSES, 0.0)
    cut = 0
    for seed in range(200):
        mixed, _ = mixing(images, labels, seed)
        cut += bool(torch.isin(mixed, images).all())
    assert cut / 200 == pytest.approx(share, abs=0.1)


def test_off_leaves_images_and_smooths_labels() -> None:
    images, labels = batch(5)
    mixing = Mixing(0.0, 0.0, 0.5, CLASSES, 0.1)
    assert not mixing.on
    assert Mixing(**BOTH).on
    mixed, soft = mixing(images, labels, 0)
    assert torch.equal(mixed, images)
    logits = torch.randn(5, CLASSES)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(logits, soft), expected)


def test_processes_with_one_seed_draw_one_weight() -> None:
    images, labels = batch(16)
    labels = torch.arange(16) % CLASSES
    whole, parts = Mixing(0.8, 0.0, 0.5, CLASSES, 0.0), [slice(0, 8), slice(8, 16)]
    tops = {round(whole(images[part], labels[part], 3)[1].max().item(), 6) for part in [*parts, slice(None)]}
    assert len(tops) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_halves(dtype: torch.dtype) -> None:
    images, labels = batch(4)
    mixed, soft = Mixing(**BOTH)(images.to(dtype), labels, 1)
    assert (mixed.dtype, soft.dtype) == (dtype, torch.float32)


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    images, labels = (part.cuda() for part in batch(16))
    mixing = Mixing(**BOTH)
    on_cpu = [mixing(*batch(16), seed) for seed in range(6)]
    with no_waiting():
        on_gpu = [mixing(images, labels, seed) for seed in range(6)]
    for one, other in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(other[0].cpu(), one[0])
        torch.testing.assert_close(other[1].cpu(), one[1])
