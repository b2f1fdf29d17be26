"""What makes an experiment: the settings that decide the numbers of a run, what they are called, and their hash.

A setting of the schema says itself what it is (``kinds``): ``execution`` is where and how a run is executed,
``asked`` only led to other settings, and a setting at its ``neutral`` value is as if it had never been added. This is
the one walk over settings that knows these marks. It takes a ``Config``, or settings as a run froze them, which may be
older than some of the schema: a setting that is missing there has its default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

from mixersweep.budget import Architecture
from mixersweep.config import VARIANTS, Config

T = TypeVar("T")
EXECUTION = frozenset(each.name for each in dataclasses.fields(Config) if each.metadata.get("execution"))
"""The settings, and groups of them, of where and how a run is executed."""
Settings = Mapping[str, Any]
"""Nested, as in ``config.yaml``."""

NUMBERS_VERSION = 1
"""Rises whenever a change of the code changes the losses of a run; runs made before are then other experiments."""

SIZES = ("tokens", "channels", "width", "token_hidden", "channel_hidden", "hidden_width", "connections")
"""The sizes that define a network; its counts follow from them and are left out."""


@dataclass(frozen=True)
class Experiment:
    """Settings that make an experiment.

    ``content`` is nested and without neutral values: what is hashed. ``flat`` has every setting under its dotted name,
    as the command line spells it: what is filtered and compared.
    """

    content: dict[str, Any] = field(default_factory=dict)
    flat: dict[str, Any] = field(default_factory=dict)


def experiment(settings: Config | Settings) -> Experiment:
    """The settings among these that make the experiment."""
    found = Experiment()
    found.content.update(_walk(Config, _values(settings), "", found.flat))
    return found


def fingerprint(config: Config, architecture: Architecture) -> str:
    """sha256 (64 hex digits) over canonical JSON of the solved config and ``NUMBERS_VERSION``."""
    return _hash(experiment(config), vars(architecture), NUMBERS_VERSION)


def version_of(found: Experiment, stored: Settings) -> int | None:
    """The ``NUMBERS_VERSION`` that a frozen run was made with, by its fingerprint; None for one that is not known."""
    versions = range(NUMBERS_VERSION, 0, -1)
    return next((v for v in versions if _hash(found, stored["architecture"], v) == stored["fingerprint"]), None)


def executed_as(stored: T, now: T) -> T:
    """The settings of a stored experiment, with those of where and how it runs as they are now."""
    changed = {}
    for setting in dataclasses.fields(stored):  # type: ignore[arg-type]
        frozen, wanted = getattr(stored, setting.name), getattr(now, setting.name)
        if setting.metadata.get("execution"):
            changed[setting.name] = wanted
        elif dataclasses.is_dataclass(frozen):
            changed[setting.name] = executed_as(frozen, wanted)
    return dataclasses.replace(stored, **changed)  # type: ignore[type-var]


def flat(settings: Config | Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under its dotted name, those of where and how a run is executed too."""
    for name, value in _values(settings).items():
        if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
            yield from flat(value, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, value


def _hash(found: Experiment, sizes: Settings, version: int) -> str:
    architecture = {name: sizes.get(name) for name in SIZES}
    content = {"numbers_version": version, "config": found.content, "architecture": architecture}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _walk(cls: type, values: Settings, prefix: str, flat: dict[str, Any]) -> dict[str, Any]:
    """Put the settings under their dotted names into ``flat``; what is hashed of them is returned."""
    content: dict[str, Any] = {}
    for name, default, neutral, group, is_variant in _settings(cls, not prefix):
        value = values.get(name, default)
        if is_variant:
            group = VARIANTS[name].get(_values(value)["name"])
        if group is not None and value is not None:
            content[name] = _walk(group, _values(value), f"{prefix}{name}.", flat)
            continue
        flat[prefix + name] = value
        if neutral is dataclasses.MISSING or value != neutral:
            content[name] = value
    return content


def _values(settings: Any) -> Settings:
    return settings if isinstance(settings, Mapping) else vars(settings)


class _Setting(NamedTuple):
    """A field of the schema: of a ``group`` of settings its class, of a variant's none, since a name chooses it."""

    name: str
    default: Any
    neutral: Any
    group: type | None
    is_variant: bool


@cache
def _settings(cls: type, top: bool) -> tuple[_Setting, ...]:
    """Those of a class that make the experiment."""
    hints = typing.get_type_hints(cls)
    found = []
    for each in dataclasses.fields(cls):
        if each.metadata.get("execution") or each.metadata.get("asked"):
            continue
        default = None if each.default is dataclasses.MISSING else each.default
        hint = hints[each.name]
        group = hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
        neutral = each.metadata.get("neutral", dataclasses.MISSING)
        found.append(_Setting(each.name, default, neutral, group, top and each.name in VARIANTS))
    return tuple(found)
