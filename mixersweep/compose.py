"""Compose overrides into checked configs with Hydra, for one run or many, with every error in one line.

Hydra's grammar, groups and defaults make the config; the schema checks it. Override keys are checked before composing,
because Hydra silently adds unknown keys with ``+`` and its own errors do not name the nearest valid choice.
``sweeps/expand.py`` expands overrides into one run or a sweep with the ``Composer`` here; any other Hydra sweeper calls
a job for each run.

``--config-dir=DIR`` adds the user's own choices, such as ``DIR/experiment/NAME.yaml``. It is stored as the first
override, so that stored overrides keep their meaning; a stored run does not read it.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mixersweep.config import Config, check_key, parse
from mixersweep.errors import RunDiverged, RunStopped, UserError
from mixersweep.kinds import FromEnvironment
from mixersweep.paths import config_dir, config_groups, expand_home

Job = Callable[[list[str]], float | None]
"""A function that trains the run of these overrides and returns its validation accuracy, or None, for a sweeper."""

DIVERGED_ACCURACY = 0.0
"""The accuracy that a diverged run counts as."""

OWN_SWEEPER = "mixersweep"

CONFIG_DIR = "--config-dir="


@dataclass(frozen=True)
class Invocation:
    """The arguments of ``train``: overrides, Hydra's flags, and whether they mean many runs.

    ``user_dir``: the user's directory of configs. ``is_for_hydra``: a flag asks Hydra to show something, or another
    sweeper than the program's own carries them out.
    """

    overrides: list[str]
    flags: list[str]
    user_dir: Path | None
    multirun: bool
    is_for_hydra: bool


def read_arguments(arguments: list[str]) -> Invocation:
    """Parse the arguments of ``train``; raises ``UserError`` for unknown keys and choices."""
    sys.argv = ["mixersweep train", *arguments]  # Hydra's parser shows it in its usage
    parsed = get_args_parser().parse_intermixed_args(arguments)
    overrides = list(parsed.overrides)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    refused_flag = next(
        (flag for flag in ("config_path", "config_name", "experimental_rerun") if vars(parsed)[flag]), None
    )
    if refused_flag is not None:
        flag = f"--{refused_flag.replace('_', '-')}"
        raise UserError(f"{flag}: the settings are train.yaml's; --config-dir adds choices of your own to it")
    user_dir = None if parsed.config_dir is None else find_user_dir(parsed.config_dir)
    check_overrides(overrides, user_dir)
    checked = parse_overrides(overrides)
    is_informational = bool(parsed.cfg or parsed.info or parsed.help or parsed.hydra_help or parsed.shell_completion)
    multirun, sweeper = bool(parsed.multirun), OWN_SWEEPER
    if user_dir or any(_group_of(o) in ("hydra", "sweep") or o.key_or_group == "experiment" for o in checked):
        composer = Composer(overrides, user_dir)
        multirun, choices = multirun or composer.is_multirun, composer.shared.hydra.runtime.choices
        sweeper = choices["hydra/sweeper"]
        if sweeper != OWN_SWEEPER and not is_informational:
            _check_other_sweeper(sweeper, choices["hydra/launcher"], overrides, multirun=multirun)
    sweep_override = next((o for o in checked if o.is_sweep_override()), None)
    if sweep_override is not None and not multirun:
        raise UserError(f"{sweep_override.input_line}: several values; sweep over them with -m")
    return Invocation(
        overrides, flags, user_dir, multirun, is_for_hydra=is_informational or (multirun and sweeper != OWN_SWEEPER)
    )


def _check_other_sweeper(sweeper: str, launcher: str, overrides: list[str], *, multirun: bool) -> None:
    """Raise ``UserError`` for settings that a sweeper other than our own would ignore."""
    if not multirun:
        raise UserError(f"hydra/sweeper={sweeper}: sweeps with -m, or hydra.mode=MULTIRUN")
    is_chosen = launcher != "local" or any(o.key_or_group == "hydra/launcher" for o in parse_overrides(overrides))
    if is_chosen and (config_dir() / "hydra" / "launcher" / f"{launcher}.yaml").exists():
        raise UserError(
            f"hydra/launcher={launcher}: takes the runs of the program's own sweeper; "
            f"hydra/sweeper={sweeper} goes with Hydra's launchers, such as basic"
        )


def run_app(invocation: Invocation, job: Job, failed: Callable[[Exception], None]) -> None:
    """Run Hydra: show what a flag asks for, or have a sweeper call ``job`` with the overrides of each run.

    An exception of one job goes to ``failed`` and the sweeper goes on; a stop by a signal ends all jobs. Raises
    ``UserError`` for invalid settings.
    """
    overrides, multirun = list(invocation.overrides), invocation.multirun
    if multirun and not any(o.key_or_group == "hydra/launcher" for o in parse_overrides(overrides)):
        overrides.append("hydra/launcher=basic")  # the program's own launchers take run directories
    stops: list[RunStopped] = []

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
    def app(_: DictConfig) -> float | None:
        try:
            return job([*config_dir_arguments(invocation.user_dir), *HydraConfig.get().overrides.task])
        except RunStopped as error:
            stops.append(error)
            raise KeyboardInterrupt from None  # the one thing that ends a multirun between two jobs
        except Exception as error:  # kept from Hydra, which would print its own line about it
            failed(error)
            return DIVERGED_ACCURACY if isinstance(error, RunDiverged) else None

    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["mixersweep train", *overrides, *invocation.flags]  # Hydra's own parser wants them apart
    try:
        app()
    except KeyboardInterrupt:
        if not stops:
            raise
        raise stops[0] from None
    except yaml.YAMLError as error:
        raise UserError(describe_yaml_error(error)) from None
    except ValueError as error:  # two flags that exclude each other; what jobs raise is kept above
        raise UserError(_one_line(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        for job_overrides in _jobs(overrides, multirun=multirun):
            _check_against_choices(job_overrides, invocation.user_dir)
        raise UserError(_one_line(error)) from error


class Composer:
    """Composes the configs of many runs: Hydra composes once per set of group choices, and values are set on copies.

    ``overrides`` are those that all runs share, and ``user_dir`` is the user's directory of configs.
    """

    def __init__(self, overrides: Sequence[str] = (), user_dir: Path | None = None) -> None:
        self._overrides = list(overrides)
        self._user_dir = user_dir
        self._bases: dict[tuple[str, ...], _Base] = {}

    @cached_property
    def shared(self) -> DictConfig:
        """The config composed of the shared choices, for the values under ``hydra`` and ``sweep``."""
        kept = [
            override.input_line or ""
            for override in parse_overrides(self._overrides)
            if _group_of(override) in ("hydra", "sweep") or is_choice(override)
        ]
        return self._load(kept, RunMode.MULTIRUN)

    @property
    def is_multirun(self) -> bool:
        """Whether the overrides mean a sweep without ``-m``: by Hydra's mode, a launcher, or settings under ``sweep``.

        Raises ``UserError`` for settings that the program's own sweeper would ignore.
        """
        mode, choices, sweep = self.shared.hydra.mode, self.shared.hydra.runtime.choices, self.shared.sweep
        if choices["hydra/sweeper"] != OWN_SWEEPER:
            return bool(mode == RunMode.MULTIRUN)
        for name in set(self.shared.hydra.sweeper) - {"name"}:
            raise UserError(f"hydra.sweeper.{name}: is Hydra's own sweeper's; values to sweep over are sweep.over's")
        has_launcher = choices["hydra/launcher"] != "local" or any(
            override.key_or_group.startswith("hydra.launcher") for override in parse_overrides(self._overrides)
        )
        has_sweep_settings = has_launcher or any(sweep[name] for name in ("grids", "over", "search"))
        return bool(mode == RunMode.MULTIRUN or (mode is None and has_sweep_settings))

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose the values of one run as plain dicts, without the nodes ``hydra`` and ``sweep``.

        Raises ``UserError`` for overrides that Hydra cannot apply.
        """
        parsed = [parse_override(override) for override in overrides]
        choices = tuple(o.input_line or "" for o in parsed if is_choice(o))
        try:
            if choices not in self._bases:
                self._bases[choices] = _Base(self._load(list(choices), RunMode.RUN))
            return self._bases[choices].with_values([override for override in parsed if not is_choice(override)])
        except (HydraException, OmegaConfBaseException) as error:
            _check_against_choices(list(overrides), self._user_dir)
            raise UserError(_one_line(error)) from error

    def config(self, overrides: Sequence[str]) -> Config:
        """Compose and check the config of one run; raises ``UserError`` for invalid settings."""
        return parse(self.values(overrides))

    def _load(self, overrides: list[str], mode: RunMode) -> DictConfig:
        try:
            composed = _loader(self._user_dir).load_configuration("train", overrides, mode)
        except (HydraException, OmegaConfBaseException) as error:
            _check_launcher(overrides)
            raise UserError(_one_line(error)) from error
        if composed.get("experiment") is not None:
            name = composed.hydra.runtime.choices["experiment"]
            raise UserError(
                f"experiment={name}: its settings would be under `experiment`; begin the file with "
                "the line `# @package _global_`"
            )
        return composed


def _check_launcher(overrides: Sequence[str]) -> None:
    """Refuse a setting that the launcher has not, and name the nearest: Hydra would have it added with a ``+``."""
    given = {o.key_or_group: o for o in parse_overrides(overrides)}
    chosen = given["hydra/launcher"].value() if "hydra/launcher" in given else "local"
    file = config_dir() / "hydra" / "launcher" / f"{chosen}.yaml"
    known = list(OmegaConf.load(file)) if file.is_file() else []
    for key, override in given.items():
        name = key.removeprefix("hydra.launcher.").partition(".")[0]
        if known and key.startswith("hydra.launcher.") and name not in known:
            near = difflib.get_close_matches(name, map(str, known), 1, 0.5)
            tail = f"the nearest is hydra.launcher.{near[0]}" if near else f"there are {', '.join(map(str, known))}"
            raise UserError(f"{override.input_line}: no such setting of hydra/launcher={chosen}; {tail}")


class _Base:
    """A composed config to set values on, by Hydra's code or, where the result is the same, faster on plain dicts."""

    def __init__(self, composed: DictConfig) -> None:
        with open_dict(composed):
            del composed["hydra"]
            composed.pop("sweep", None)
        self._composed = composed
        texts = [leaf for leaf in _leaves(OmegaConf.to_container(composed, resolve=False)) if isinstance(leaf, str)]
        self._read = {key for text in texts for key in re.findall(r"\$\{([^{}:]+)\}", text)}
        self._plain: dict[str, Any] | None = None
        self._replaceable: dict[str, bool] = {}

    def with_values(self, overrides: list[Override]) -> dict[str, Any]:
        """A new nested dict with the overrides applied and every interpolation resolved."""
        if all(self._is_plain(override) for override in overrides):
            if self._plain is None:
                self._plain = _resolve(self._composed)
            values: dict[str, Any] = _copy(self._plain)
            for override in overrides:
                *path, name = override.key_or_group.split(".")
                node = values
                for part in path:
                    node = node[part]
                node[name] = override.value()
            return values
        composed = copy.deepcopy(self._composed)
        ConfigLoaderImpl._apply_overrides_to_config(overrides, composed)
        return _resolve(composed)

    def _is_plain(self, override: Override) -> bool:
        """Whether the override only replaces one value that is there and that no interpolation reads."""
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or override.is_delete() or override.package is not None:
            return False
        if isinstance(override.value(), dict) or "${" in (override.input_line or ""):
            return False
        if key not in self._replaceable:
            self._replaceable[key] = self._is_replaceable(key)
        return self._replaceable[key]

    def _is_replaceable(self, key: str) -> bool:
        node: Any = self._composed
        for part in key.split("."):
            if not isinstance(node, DictConfig) or part not in node:
                return False
            node = node._get_node(part)
        if isinstance(node, DictConfig):
            return False
        return not any(read.startswith(".") or f"{key}.".startswith(f"{read}.") for read in self._read)


@cache
def _loader(user_dir: Path | None = None) -> ConfigLoaderImpl:
    setup_globals()
    search_path = create_config_search_path(str(config_dir()))
    if user_dir is not None:  # as Hydra itself does
        search_path.prepend("command-line", f"file://{user_dir}", SearchPathQuery(provider="schema"))
    loader = ConfigLoaderImpl(search_path)
    loader.repository = _CheckedFiles(search_path)
    return loader


class _CheckedFiles(ConfigRepository):
    """Hydra's config files, checked: invalid YAML or ambiguous numbers are a ``UserError`` with file and line."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Load a config file; raises ``UserError`` for invalid YAML and ambiguous numbers."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            _check_yaml(Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml")
        try:
            return super().load_config(config_path)
        except yaml.YAMLError as error:
            raise UserError(describe_yaml_error(error)) from None


def _check_yaml(path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        top = yaml.compose(text, Loader=_YamlLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not of UTF-8: {error.reason} at byte {error.start}") from None
    except yaml.YAMLError as error:
        raise UserError(describe_yaml_error(error, path)) from None
    if top is not None and not isinstance(top, yaml.MappingNode) and top.value:
        raise UserError(f"{path}: expects settings such as `epochs: 10`, not {' '.join(text.split())[:40]}")
    nodes = [top]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and _AMBIGUOUS_NUMBER.match(node.value):
            reads = yaml.SafeLoader("").construct_yaml_int(node)
            raise UserError(
                f"{path}:{node.start_mark.line + 1}: {node.value} is the number {reads} to YAML; "
                f"write '{node.value}' in quotes for the text, or {reads}"
            )


_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_AMBIGUOUS_NUMBER = re.compile(r"[-+]?(\d[\d_]*:|0[0-7_]+$)")
"""Texts that YAML 1.1 reads as numbers to base 60 or 8, which nobody means."""


def describe_yaml_error(error: yaml.YAMLError, path: Path | None = None) -> str:
    """Describe a YAML error in one line, with file and line number."""
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = str(path or (mark and mark.name) or "a file") + (f":{mark.line + 1}" if mark else "")
    problem = getattr(error, "problem", None) or str(error)
    return f"{position}: no YAML: {' '.join(str(problem).split())}"


def find_user_dir(directory: str) -> Path:
    """The user's directory of configs, absolute; raises ``UserError`` if it is missing or redefines a choice."""
    path, known = expand_home(directory, "--config-dir").absolute(), config_groups()
    found = {group: sorted(file.stem for file in (path / group).glob("*.yaml")) for group in known}
    if not any(found.values()):
        reason = f"has no files such as experiment/NAME.yaml (or in {', '.join(known)})"
        raise UserError(f"{CONFIG_DIR}{directory}: {reason if path.is_dir() else 'no such directory'}")
    for group, names in found.items():
        for name in set(names) & set(known[group]):
            raise UserError(f"{CONFIG_DIR}{directory}: {group}={name} is a choice already; call your file otherwise")
    return path


def config_dir_arguments(user_dir: Path | None) -> list[str]:
    """The ``--config-dir`` argument to put before stored overrides; empty without a directory."""
    return [] if user_dir is None else [f"{CONFIG_DIR}{user_dir}"]


def split_config_dir(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split off a leading ``--config-dir=DIR``: the user's directory of configs or None, and the overrides."""
    if arguments and arguments[0].startswith(CONFIG_DIR):
        return find_user_dir(arguments[0].removeprefix(CONFIG_DIR)), list(arguments[1:])
    return None, list(arguments)


def config_of(overrides: list[str]) -> Config:
    """Compose and check the config of one run; raises ``UserError`` for invalid settings."""
    return Composer().config(overrides)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar; raises ``UserError`` for text that is not one."""
    return [parse_override(override) for override in overrides]


@lru_cache(maxsize=65536)
def parse_override(override: str) -> Override:
    """Parse one override in Hydra's grammar; raises ``UserError`` for text that is not one."""
    try:
        (parsed,) = OverridesParser.create(_loader()).parse_overrides([override])
    except HydraException as error:
        key, equals, value = override.partition("=")
        quoted = shlex.quote(key + '="' + value.replace('"', '\\"') + '"')
        hint = f"; where that is one text, quote it for Hydra and for the shell: {quoted}" if equals else ""
        raise UserError(f"{_one_line(error)}{hint}") from error
    return parsed


def is_choice(override: Override) -> bool:
    """Whether the override chooses a file of a config group."""
    key = override.key_or_group
    is_group = key in _group_names() or (key.startswith("hydra/") and "." not in key)
    return is_group and not isinstance(override.value(), dict)


@cache
def _group_names() -> frozenset[str]:
    return frozenset(config_groups())


def _group_of(override: Override) -> str:
    return override.key_or_group.partition(".")[0].partition("/")[0]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _resolve(composed: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    assert isinstance(values, dict)
    _mark(values, OmegaConf.to_container(composed, resolve=False))
    return {str(key): value for key, value in values.items()}


def _mark(values: dict[Any, Any], written: Any) -> None:
    """Mark, in place, values that come whole from an environment variable (``FromEnvironment``)."""
    for key, text in written.items():
        if isinstance(text, dict) and isinstance(values[key], dict) and key != "arguments":
            _mark(values[key], text)
        elif isinstance(text, str) and isinstance(values[key], str) and re.fullmatch(r"\$\{oc\.env:.*\}", text):
            values[key] = FromEnvironment(values[key])


def check_overrides(overrides: Sequence[str], user_dir: Path | None = None) -> None:
    """Raise ``UserError`` for unknown keys and choices, with any prefix (``+``, ``++``, ``~``)."""
    known = config_groups(user_dir)
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if _group_of(override) == "hydra":
            continue
        if key in known and not override.is_delete():
            for choice in _choices(override):
                _check_choice(key, choice, known[key])
        else:
            check_key(key, _typed_value(override))


def _typed_value(override: Override) -> str:
    """The value of an override as it was typed."""
    return (override.input_line or "").partition("=")[2] or "null"


def _choices(override: Override) -> Iterator[object]:
    value = override.value()
    listed = value.list if isinstance(value, ChoiceSweep) else [value]
    yield from (getattr(choice, "text", choice) for choice in listed)  # a QuotedString has its text


def _check_choice(group: str, choice: object, names: list[str]) -> None:
    if isinstance(choice, str) and choice not in names:
        near = difflib.get_close_matches(choice, names, 1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"{group}={choice}: no such {group}{nearest}; there are {', '.join(names)}")


def _jobs(overrides: list[str], *, multirun: bool) -> list[list[str]]:
    if not multirun:
        return [overrides]
    try:
        batches = BasicSweeper.split_arguments(parse_overrides(overrides), None)
        return [list(job) for batch in batches for job in batch]
    except (HydraException, UserError):
        return []


def _check_against_choices(overrides: list[str], user_dir: Path | None) -> None:
    """Raise ``UserError`` for settings that only other choices of their group have, e.g. ``model.tied`` of sw_mlp."""
    parsed = parse_overrides(overrides)
    try:
        choices = [o.input_line or "" for o in parsed if is_choice(o) and _group_of(o) != "hydra"]
        composed = Composer(user_dir=user_dir).values(choices)
    except UserError:
        return
    for override in parsed:
        key = override.key_or_group
        group = composed.get(key.partition(".")[0])
        if "." in key and isinstance(group, dict) and _group_of(override) != "hydra":
            check_key(key, _typed_value(override), group.get("name"))


def _one_line(error: BaseException) -> str:
    """The message of a Hydra exception in one line, or of its cause where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines and error.__cause__ is not None:
        return _one_line(error.__cause__)
    return re.sub(r"\s+", " ", "; ".join(lines[:2])) or type(error).__name__
