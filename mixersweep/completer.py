"""What a shell is offered behind ``mixersweep train``: keys, then their choices; run directories for ``run_dir=``.

Reads the schema and the names of files, and imports neither Hydra nor torch. ``--config-dir DIR`` before the word
brings the choices of that directory too.
"""

from __future__ import annotations

import typing
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixersweep.paths import config_dir, groups, runs_dir

LAUNCHER = "hydra/launcher"


def overrides(prefix: str, parsed_args: Namespace | None = None, **_: object) -> list[str]:
    """The completions of one override as typed so far, e.g. ``mod`` or ``model=s_``."""
    own = getattr(parsed_args, "config_dir", None)
    key, equals, value = prefix.partition("=")
    if not equals:
        return sorted(f"{name}=" for name in _keys() if name.startswith(key))
    done, comma, last = value.rpartition(",")  # a sweep: the values before stay
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
    """The run directories, as paths."""
    return [path for path in _values("run_dir") if path.startswith(prefix)]


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
    elif key == "run_dir":
        yield from (str(path) for path in sorted(runs_dir().glob("*-*")) if (path / "config.yaml").exists())
    else:
        found = dict.fromkeys(choice for name, hint in _settings() if name == key for choice in _choices(hint))
        yield from found


def _choices(annotation: object) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    for part in typing.get_args(annotation) if typing.get_origin(annotation) is not dict else ():
        if isinstance(part, (str, int)):
            yield str(part).lower()
        else:
            yield from _choices(part)
