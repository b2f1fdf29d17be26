"""What a shell is offered behind ``mixersweep train``: keys, then their choices; run directories for ``run_dir=``.

Reads the schema and the names of files, and imports neither Hydra nor torch. ``--config-dir DIR`` before the word
brings the choices of that directory too.
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

from mixersweep.paths import config_dir, groups, runs_dir, sweeps_dir

LAUNCHER = "hydra/launcher"
OF_LAUNCHER = "hydra.launcher."

_RUN_NAME = re.compile(r"^[^.].*-[0-9a-f]{16}$")


def overrides(prefix: str, parsed_args: Namespace | None = None, **_: object) -> list[str]:
    """The completions of one override as typed so far, e.g. ``mod`` or ``model=s_``."""
    own = getattr(parsed_args, "config_dir", None)
    key, equals, value = prefix.partition("=")
    if not equals:
        own_keys = _launcher_settings(getattr(parsed_args, "overrides", None)) if key.startswith("hydra") else {}
        known = {*_keys(), *(OF_LAUNCHER + name for name in own_keys)}
        return sorted(f"{name}=" for name in known if name.startswith(key))
    done, comma, last = value.rpartition(",")  # a sweep: the values before stay
    if key == "run_dir":
        return [f"run_dir={path}" for path in run_dirs(value)]
    if key.startswith(OF_LAUNCHER):
        choices: Iterable[str] = _of_launcher(key.removeprefix(OF_LAUNCHER), getattr(parsed_args, "overrides", None))
    else:
        choices = _values(key, None if own is None else Path(own).expanduser())
    return [f"{key}={done}{comma}{choice}" for choice in choices if choice.startswith(last)]


def data_sets(prefix: str, **_: object) -> list[str]:
    """The data sets."""
    return [name for name in groups()["data"] if name.startswith(prefix)]


def models(prefix: str, **_: object) -> list[str]:
    """The families, in a comma-separated list."""
    from mixersweep.families import FAMILIES

    return _in_list(prefix, FAMILIES)


def states(prefix: str, **_: object) -> list[str]:
    """The states of runs, in a comma-separated list."""
    from mixersweep.runs.state import SHOWN

    return _in_list(prefix, SHOWN)


def run_dirs(prefix: str, **_: object) -> list[str]:
    """The run directories, as paths: those in the directory that the path begins with, else in that of all runs."""
    folder = Path(prefix.rpartition("/")[0] or "/") if "/" in prefix else runs_dir()
    return [path for name in _runs_in(folder) if (path := str(folder / name)).startswith(prefix)]


def runs(prefix: str, **_: object) -> list[str]:
    """The runs, by name from its first letters, or as paths."""
    return [name for name in _runs_in(runs_dir()) if name.startswith(prefix)] or run_dirs(prefix)


def sweeps(prefix: str, **_: object) -> list[str]:
    """The sweeps that have left something in the directory of runs."""
    try:
        found = sorted(entry.name for entry in os.scandir(sweeps_dir(runs_dir())) if not entry.name.startswith("."))
    except OSError:
        return []
    return [name for name in found if name.startswith(prefix)]


def runs_and_sweeps(prefix: str, **_: object) -> list[str]:
    """What ``diff`` takes."""
    return [*sweeps(prefix), *runs(prefix)]


def x_axes(prefix: str, **_: object) -> list[str]:
    """The x axes of a report's main figure."""
    return [name for name in _axes().X_AXES if name.startswith(prefix)]


def y_axes(prefix: str, **_: object) -> list[str]:
    """Its y axes."""
    return [name for name in _axes().Y_AXES if name.startswith(prefix)]


def _axes() -> Any:
    """The module ``report.axes`` without its package, which computes."""
    name = "mixersweep.report.axes"
    spec = spec_from_file_location(name, Path(__file__).parent / "report" / "axes.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(name, module_from_spec(spec))  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def _runs_in(folder: Path) -> list[str]:
    """The names of runs, by their looks: five thousand are not asked whether they are whole."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if _RUN_NAME.search(entry.name))
    except OSError:
        return []


def _in_list(prefix: str, choices: Iterable[str]) -> list[str]:
    done, comma, last = prefix.rpartition(",")
    return [f"{done}{comma}{choice}" for choice in choices if choice.startswith(last)]


def _keys() -> set[str]:
    known = {key for key, _ in _settings()} - {"tracking.name", "data.name", "model.name", "optim.name"}
    return known | {*groups(), LAUNCHER}


def _settings() -> Iterator[tuple[str, object]]:
    from mixersweep.config import Search, Sweep, keys

    yield from keys()
    yield from keys(Sweep, "sweep.")
    yield from keys(Search, "sweep.search.")


def _values(key: str, own: Path | None = None) -> Iterator[str]:
    if key in groups():
        yield from groups(own)[key]
    elif key == LAUNCHER:
        yield from sorted(file.stem for file in (config_dir() / LAUNCHER).glob("*.yaml"))
    else:
        found = dict.fromkeys(choice for name, hint in _settings() if name == key for choice in _choices(hint))
        yield from found


def _launcher_settings(given: Sequence[str] | None) -> dict[str, str]:
    """The settings of the launcher that the words before choose, else of all, each with its default as it is written.

    Read by their looks: a YAML parser takes longer than all else here.
    """
    chosen = [word.partition("=")[2] for word in given or () if word.startswith(f"{LAUNCHER}=")]
    found: dict[str, str] = {}
    for file in sorted((config_dir() / LAUNCHER).glob(f"{chosen[-1] if chosen else '*'}.yaml")):
        found |= dict(re.findall(r"^(\w+): ([^#\n]*?)\s*(?:#.*)?$", file.read_text(), re.MULTILINE))
    return {name: value for name, value in found.items() if name != "name"}


def _of_launcher(name: str, given: Sequence[str] | None) -> list[str]:
    default = _launcher_settings(given).get(name)
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
