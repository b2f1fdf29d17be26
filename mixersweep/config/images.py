"""Checks of the settings about images: sizes, patches, channels and augmentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mixersweep.config.schema import Augment, Config, Data
from mixersweep.errors import Infeasible, UserError

RAND_AUGMENT = re.compile(r"rand(-(m\d+|mstd\d+(\.\d+)?|mmax\d+|n\d+|p\d+(\.\d+)?|inc[01]))*")
"""The strings that timm's ``rand_augment_transform`` accepts."""


def check_folder_facts(data: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for an image folder whose facts (classes, numbers of images, content hash) are not set."""
    if data.get("content") is None:  # only image folders have this setting
        return
    facts = ("classes", "train_images", "test_images", "content")
    missing = [f"data.{fact}" for fact in facts if data.get(fact) in (None, "")]
    if missing:
        name, folder = data.get("name"), data.get("root") or "DIR"
        raise UserError(
            f"data={name}: {', '.join(missing)} not set; "
            f"mixersweep data prepare {name} --root {folder} prints the settings of a folder"
        )


def check_images(config: Config) -> None:
    """Check that images can be brought to ``image_size``, cut into patches and augmented as set.

    Raises ``UserError``, or ``Infeasible`` where a nearest setting works.
    """
    if config.image_size % config.patch_size:
        sizes = [p for p in range(1, config.image_size + 1) if config.image_size % p == 0]
        nearest = min(sizes, key=lambda size: abs(size - config.patch_size))
        raise Infeasible(
            f"patch_size={config.patch_size}: does not divide image_size={config.image_size}; the nearest is {nearest}",
            {"patch_size": nearest},
        )
    _check_fit(config.data, config.image_size)
    _check_augment(config.augment)


def _check_fit(data: Data, image_size: int) -> None:
    for key, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != data.image_channels:
            raise UserError(
                f"data.{key}={values}: {len(values)} values for images of {data.image_channels} channels; give one each"
            )
    if data.native_size is None and data.fit != "crop":
        raise UserError(f"data.fit={data.fit}: {data.name} has images of many sizes; use data.fit=crop")
    if data.fit == "pad" and data.native_size is not None and image_size < data.native_size:
        raise Infeasible(
            f"image_size={image_size}: {data.name} has images of {data.native_size} pixels, "
            f"which are padded and not shrunk; use {data.native_size} or more, or data.fit=resize",
            {"image_size": data.native_size},
        )
    if data.fit != "crop" and data.crop_share != 1:
        raise UserError(f"data.crop_share={data.crop_share:g}: belongs to data.fit=crop, not {data.fit}; leave it at 1")


def _check_augment(augment: Augment) -> None:
    if augment.random_resized_crop is not None and augment.crop_padding:
        raise UserError(
            f"augment.random_resized_crop={augment.random_resized_crop:g}: is a crop already; "
            f"set augment.crop_padding=0 (now {augment.crop_padding}), or augment.random_resized_crop=null"
        )
    if not RAND_AUGMENT.fullmatch(augment.rand_augment):
        raise UserError(
            f"augment.rand_augment={augment.rand_augment}: not timm's description of a RandAugment; "
            "rand-m9-mstd0.5-inc1 is one"
        )
