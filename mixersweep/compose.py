"""Hydra: from the arguments of ``train`` to checked configs, every mistake in one line.

Hydra composes and sweeps; the schema checks. Override keys are checked before anything is composed, because Hydra
adds unknown keys with ``+`` in silence, and its own refusals do not know the nearest valid choice.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mixersweep.config import Config, check_key, parse
from mixersweep.errors import RunStopped, UserError
from mixersweep.paths import config_dir, groups
from mixersweep.runs import Origin

Job = Callable[[Config, Origin], None]


def run_app(arguments: list[str], job: Job, failed: Callable[[Exception], None]) -> bool:
    """Compose the arguments and call ``job`` for each run they mean, as a Hydra application does.

    In a multirun an exception of one job goes to ``failed`` and the others go on; a stop by a signal ends all.
    Returns whether it was a multirun. Raises ``UserError`` for settings that cannot be.
    """
    sys.argv = ["mixersweep train", *arguments]
    parsed = get_args_parser().parse_intermixed_args(arguments)
    overrides, multirun = list(parsed.overrides), bool(parsed.multirun)
    _check_overrides(overrides, multirun=multirun)

    ended: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
    def app(composed: DictConfig) -> None:
        try:
            job(*_job_of(composed))
        except Exception as error:  # kept from Hydra, which would print its own line about it
            if not multirun or isinstance(error, RunStopped):
                ended.append(error)
                raise KeyboardInterrupt from None  # the one thing that ends a multirun between two jobs
            failed(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    sys.argv = ["mixersweep train", *overrides, *flags]  # Hydra's own parser wants them apart
    try:
        app()
    except KeyboardInterrupt:
        if not ended:
            raise
        raise ended[0] from None
    except ValueError as error:  # two flags that exclude each other; what jobs raise is kept above
        raise UserError(_one_line(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        for job_overrides in _jobs(overrides, multirun=multirun):
            _check_against_choices(job_overrides)
        raise UserError(_one_line(error)) from error
    return multirun


def config_of(overrides: list[str]) -> Config:
    """The checked config of one run, composed without an application."""
    return parse(_plain(_composed(overrides)))


def _job_of(composed: DictConfig) -> tuple[Config, Origin]:
    context = HydraConfig.get()
    experiment = context.runtime.choices.get("experiment")
    return parse(_plain(composed)), Origin(experiment=experiment, overrides=list(context.overrides.task))


def _plain(composed: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _composed(overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return compose("train", overrides)


def _check_overrides(overrides: list[str], *, multirun: bool) -> None:
    """Refuse unknown keys and choices, whatever prefix they have."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(_one_line(error)) from error
    for override in parsed:
        key = override.key_or_group
        if key.partition(".")[0].partition("/")[0] == "hydra":
            continue
        if override.is_sweep_override() and not multirun:
            raise UserError(f"{override.input_line}: several values; sweep over them with -m")
        if key in groups() and not override.is_delete():
            for choice in _choices(override):
                _check_choice(key, choice)
        else:
            check_key(key, _text(override))


def _text(override: Override) -> str:
    """The value as it was typed."""
    return (override.input_line or "").partition("=")[2] or "null"


def _choices(override: Override) -> Iterator[object]:
    value = override.value()
    listed = value.list if isinstance(value, ChoiceSweep) else [value]
    yield from (getattr(choice, "text", choice) for choice in listed)  # a QuotedString has its text


def _check_choice(group: str, choice: object) -> None:
    names = groups()[group]
    if isinstance(choice, str) and choice not in names:
        near = difflib.get_close_matches(choice, names, 1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"{group}={choice}: no such {group}{nearest}; there are {', '.join(names)}")


def _jobs(overrides: list[str], *, multirun: bool) -> list[list[str]]:
    if not multirun:
        return [overrides]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except HydraException:
        return []


def _check_against_choices(overrides: list[str]) -> None:
    """Refuse settings that only other choices of their group have, e.g. ``model.tied`` of an sw_mlp."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choosing = [o.input_line or "" for o in parsed if o.key_or_group in groups()]
    try:
        composed = _plain(_composed(choosing))
    except (HydraException, OmegaConfBaseException):
        return
    for override in parsed:
        key = override.key_or_group
        group = composed.get(key.partition(".")[0])
        if "." in key and isinstance(group, dict):
            check_key(key, _text(override), group.get("name"))


def _one_line(error: BaseException) -> str:
    """What an exception of Hydra's says, or what its cause says where it says nothing itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines and error.__cause__ is not None:
        return _one_line(error.__cause__)
    return re.sub(r"\s+", " ", "; ".join(lines[:2])) or type(error).__name__
