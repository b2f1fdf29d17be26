"""mixup and CutMix: each image of a batch mixed with another one, and its label with it.

Zhang et al. 2018 (1710.09412), Yun et al. 2019 (1905.04899), by timm's implementation, whose defaults are the recipe of
Hayase & Karakida 2024, appendix C.5: one lambda ~ Beta(alpha, alpha) per batch; image i is mixed with image B-1-i; if
both are on, CutMix replaces mixup with ``switch_probability``; and lambda is corrected for boxes cut off by the border.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor


class Mixing:
    """Mix a batch: ``mixing(images, labels, seed)`` returns images and soft targets, a function of these alone.

    ``mixup`` and ``cutmix`` are the alphas, 0 for off. The targets include ``label_smoothing``, so the loss is a plain
    cross-entropy with soft targets.
    """

    def __init__(
        self, mixup: float, cutmix: float, switch_probability: float, classes: int, label_smoothing: float
    ) -> None:
        self.on = mixup > 0 or cutmix > 0
        self._mixer: Any = _Mixer(  # type: ignore[no-untyped-call]
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            switch_prob=switch_probability,
            label_smoothing=label_smoothing,
            num_classes=classes,
        )
        self._mixer.mixup_enabled = self.on

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix images, float (B, ch, H, W), with labels (B,) into new images and soft targets (B, classes), for any B.

        Random numbers are drawn on the CPU, without waiting for the device. Processes that share a batch (DDP) each mix
        their own part: with the same seed they draw the same lambda and box, and pair images within their part.
        """
        with _numpy_seeded(seed):
            mixed: tuple[Tensor, Tensor] = self._mixer(images.clone(), labels)
        return mixed


class _Mixer(Mixup):
    """timm's ``Mixup`` without its check for even batches: in an odd one the middle image is mixed with itself."""

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weight = self._mix_batch(images)  # type: ignore[no-untyped-call]
        targets = mixup_target(labels, self.num_classes, weight, self.label_smoothing)  # type: ignore[no-untyped-call]
        return images, targets


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """A context in which NumPy's global random state, which timm's mixing draws from, is seeded; restored after."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
