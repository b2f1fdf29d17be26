"""Shell completion of the command line: settings and their values, run directories, runs and sweeps.

It reads only the schema of the settings and names of files, and imports neither Hydra nor torch, to be fast. After
``--config-dir DIR``, the choices in that directory are offered too.
"""

from __future__ import annotations

import os
import re
import sys
import typing
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from mixersweep.paths import config_dir, config_groups, runs_dir, sweeps_dir

LAUNCHER = "hydra/launcher"
LAUNCHER_PREFIX = "hydra.launcher."

_RUN_NAME = re.compile(r"^[^.].*-[0-9a-f]{16}$")


def overrides(prefix: str, parsed_args: Namespace | None = None, **_: object) -> list[str]:
    """Complete an override, such as ``mod`` or ``model=s_``."""
    given_dir = getattr(parsed_args, "config_dir", None)
    words = getattr(parsed_args, "overrides", None)
    key, equals, value = prefix.partition("=")
    if not equals:
        own_keys = _launcher_settings(words) if key.startswith("hydra") else {}
        known = {*_keys(), *(LAUNCHER_PREFIX + name for name in own_keys)}
        return sorted(f"{name}=" for name in known if name.startswith(key))
    done, comma, last = value.rpartition(",")  # in a list of values, keep those before the last
    if key == "run_dir":
        return [f"run_dir={path}" for path in run_dirs(value)]
    if key.startswith(LAUNCHER_PREFIX):
        choices: Iterable[str] = _launcher_values(
            key.removeprefix(LAUNCHER_PREFIX), getattr(parsed_args, "overrides", None)
        )
    else:
        choices = _values(key, None if given_dir is None else Path(given_dir).expanduser())
    return [f"{key}={done}{comma}{choice}" for choice in choices if choice.startswith(last)]


def data_sets(prefix: str, **_: object) -> list[str]:
    """Complete the name of a data set."""
    return [name for name in config_groups()["data"] if name.startswith(prefix)]


def models(prefix: str, **_: object) -> list[str]:
    """Complete the last model family in a comma-separated list."""
    from mixersweep.families import FAMILIES

    return _complete_list(prefix, FAMILIES)


def states(prefix: str, **_: object) -> list[str]:
    """Complete the last run state in a comma-separated list."""
    from mixersweep.runs.state import SHOWN

    return _complete_list(prefix, SHOWN)


def run_dirs(prefix: str, **_: object) -> list[str]:
    """Complete the path of a run directory, in the directory of the path so far, else in the default runs directory."""
    folder = Path(prefix.rpartition("/")[0] or "/") if "/" in prefix else runs_dir()
    return [path for name in _run_names(folder) if (path := str(folder / name)).startswith(prefix)]


def runs(prefix: str, **_: object) -> list[str]:
    """Complete the name of a run, or else the path of its directory."""
    return [name for name in _run_names(runs_dir()) if name.startswith(prefix)] or run_dirs(prefix)


def sweeps(prefix: str, **_: object) -> list[str]:
    """Complete the name of a sweep that has a folder in the default directory of runs."""
    try:
        found = sorted(entry.name for entry in os.scandir(sweeps_dir(runs_dir())) if not entry.name.startswith("."))
    except OSError:
        return []
    return [name for name in found if name.startswith(prefix)]


def runs_and_sweeps(prefix: str, **_: object) -> list[str]:
    """Complete the name of a sweep or run, as ``diff`` takes them."""
    return [*sweeps(prefix), *runs(prefix)]


def x_axes(prefix: str, **_: object) -> list[str]:
    """Complete an x axis of a report's main figure."""
    return [name for name in _axes().X_AXES if name.startswith(prefix)]


def y_axes(prefix: str, **_: object) -> list[str]:
    """Complete a y axis of a report's main figure."""
    return [name for name in _axes().Y_AXES if name.startswith(prefix)]


def _axes() -> Any:
    """Load the module ``report.axes`` without its package, whose imports are slow."""
    name = "mixersweep.report.axes"
    spec = spec_from_file_location(name, Path(__file__).parent / "report" / "axes.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(name, module_from_spec(spec))  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def _run_names(folder: Path) -> list[str]:
    """Return the names in a folder that look like runs; opening thousands of directories would be slow."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if _RUN_NAME.search(entry.name))
    except OSError:
        return []


def _complete_list(prefix: str, choices: Iterable[str]) -> list[str]:
    done, comma, last = prefix.rpartition(",")
    return [f"{done}{comma}{choice}" for choice in choices if choice.startswith(last)]


def _keys() -> set[str]:
    known = {key for key, _ in _settings()} - {"tracking.name", "data.name", "model.name", "optim.name"}
    return known | {*config_groups(), LAUNCHER}


def _settings() -> Iterator[tuple[str, object]]:
    from mixersweep.config import Search, Sweep, keys

    yield from keys()
    yield from keys(Sweep, "sweep.")
    yield from keys(Search, "sweep.search.")


def _values(key: str, user_dir: Path | None = None) -> Iterator[str]:
    if key in config_groups():
        yield from config_groups(user_dir)[key]
    elif key == LAUNCHER:
        yield from sorted(file.stem for file in (config_dir() / LAUNCHER).glob("*.yaml"))
    else:
        found = dict.fromkeys(choice for name, hint in _settings() if name == key for choice in _choices(hint))
        yield from found


def _launcher_settings(words: Sequence[str] | None) -> dict[str, str]:
    """Return the settings of the chosen launcher (``words``: those typed so far) or of all, with default texts.

    A regular expression reads the YAML files, since loading a YAML parser takes longer than everything else here.
    """
    chosen = [word.partition("=")[2] for word in words or () if word.startswith(f"{LAUNCHER}=")]
    found: dict[str, str] = {}
    for file in sorted((config_dir() / LAUNCHER).glob(f"{chosen[-1] if chosen else '*'}.yaml")):
        found |= dict(re.findall(r"^(\w+): ([^#\n]*?)\s*(?:#.*)?$", file.read_text(), re.MULTILINE))
    return {name: value for name, value in found.items() if name != "name"}


def _launcher_values(name: str, words: Sequence[str] | None) -> list[str]:
    default = _launcher_settings(words).get(name)
    if default in ("true", "false"):
        return ["true", "false"]
    return [] if default is None else list(dict.fromkeys([default, "auto" if default == "auto" else "null"]))


def _choices(annotation: object) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    for part in typing.get_args(annotation) if typing.get_origin(annotation) is not dict else ():
        if isinstance(part, (str, int)):
            yield str(part).lower()
        else:
            yield from _choices(part)
