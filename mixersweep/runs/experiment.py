"""The settings that determine a run's numbers, and their fingerprint.

Settings are marked in the schema (``kinds``): ``execution`` is where and how a run is executed, ``input_only`` only
determines other settings, and a setting at its ``neutral`` value counts as absent. Only this module interprets the
marks. It takes a ``Config`` or the stored settings of a run, which may be older than the schema: settings missing
there have their defaults.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from sys import intern  # many runs share one text of each name
from typing import Any, NamedTuple, TypeVar

from mixersweep.budget import Architecture
from mixersweep.config import VARIANTS, Config

T = TypeVar("T")
EXECUTION = frozenset(each.name for each in dataclasses.fields(Config) if each.metadata.get("execution"))
"""The execution settings and groups: where and how a run is executed."""
Settings = Mapping[str, Any]
"""Settings nested as in ``config.yaml``."""

NUMBERS_VERSION = 1
"""Raised whenever a change of the code changes the losses of a run; earlier runs are then other experiments."""

SIZES = ("tokens", "channels", "width", "token_hidden", "channel_hidden", "hidden_width", "connections")
"""The sizes that define a network and enter the fingerprint; counts follow from them."""


@dataclass(frozen=True)
class Experiment:
    """The settings that determine a run's numbers.

    ``content``, nested and without neutral values, is hashed. ``flat`` has every setting under its dotted name, as on
    the command line, for filters and comparisons.
    """

    content: dict[str, Any] = field(default_factory=dict)
    flat: dict[str, Any] = field(default_factory=dict)


def experiment(settings: Config | Settings) -> Experiment:
    """Select the settings that determine a run's numbers."""
    found = Experiment()
    found.content.update(_collect(Config, _as_mapping(settings), "", found.flat))
    return found


def fingerprint(config: Config, architecture: Architecture) -> str:
    """The sha256 (64 hex digits) of canonical JSON of the solved config and ``NUMBERS_VERSION``."""
    return _hash(experiment(config), vars(architecture), NUMBERS_VERSION)


def numbers_version_of(found: Experiment, stored: Settings) -> int | None:
    """The ``NUMBERS_VERSION`` of a stored run, found by its fingerprint; None if no known version matches."""
    versions = range(NUMBERS_VERSION, 0, -1)
    return next((v for v in versions if _hash(found, stored["architecture"], v) == stored["fingerprint"]), None)


def with_execution_of(stored: T, now: T) -> T:
    """Combine the experiment's settings of ``stored`` with the execution settings of ``now``."""
    changed = {}
    for setting in dataclasses.fields(stored):  # type: ignore[arg-type]
        frozen, wanted = getattr(stored, setting.name), getattr(now, setting.name)
        if setting.metadata.get("execution"):
            changed[setting.name] = wanted
        elif dataclasses.is_dataclass(frozen):
            changed[setting.name] = with_execution_of(frozen, wanted)
    return dataclasses.replace(stored, **changed)  # type: ignore[type-var]


def flatten(settings: Config | Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name, execution settings included."""
    for name, value in _as_mapping(settings).items():
        if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield intern(prefix + name), value


def _hash(found: Experiment, sizes: Settings, version: int) -> str:
    architecture = {name: sizes.get(name) for name in SIZES}
    content = {"numbers_version": version, "config": found.content, "architecture": architecture}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _collect(cls: type, values: Settings, prefix: str, flat: dict[str, Any]) -> dict[str, Any]:
    """Add the settings under their dotted names to ``flat``, and return the nested content to be hashed."""
    content: dict[str, Any] = {}
    for name, default, neutral, group, is_variant in _settings(cls, not prefix):
        value = values.get(name, default)
        if is_variant:
            group = VARIANTS[name].get(_as_mapping(value)["name"])
        if group is not None and value is not None:
            content[name] = _collect(group, _as_mapping(value), f"{prefix}{name}.", flat)
            continue
        flat[intern(prefix + name)] = value
        if neutral is dataclasses.MISSING or value != neutral:
            content[name] = value
    return content


def _as_mapping(settings: Any) -> Settings:
    return settings if isinstance(settings, Mapping) else vars(settings)


class _Setting(NamedTuple):
    """A field of the schema; ``group`` is the class of a fixed group of settings, None for values and variants."""

    name: str
    default: Any
    neutral: Any
    group: type | None
    is_variant: bool


@cache
def _settings(cls: type, top: bool) -> tuple[_Setting, ...]:
    """The fields of a schema class that enter the fingerprint."""
    hints = typing.get_type_hints(cls)
    found = []
    for each in dataclasses.fields(cls):
        if each.metadata.get("execution") or each.metadata.get("input_only"):
            continue
        default = None if each.default is dataclasses.MISSING else each.default
        hint = hints[each.name]
        group = hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
        neutral = each.metadata.get("neutral", dataclasses.MISSING)
        found.append(_Setting(each.name, default, neutral, group, top and each.name in VARIANTS))
    return tuple(found)
