"""``mixersweep data``: list the data sets that are ready, and prepare one."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from mixersweep import completer
from mixersweep.cli.terminal import say
from mixersweep.errors import DONE
from mixersweep.paths import data_dir, expand_home


def add(verbs: Any) -> None:
    """Declare ``data list`` and ``data prepare NAME``."""
    verb = verbs.add_parser("data", help="list the data sets, or prepare one")
    actions = verb.add_subparsers(metavar="ACTION", required=True)
    directory = argparse.ArgumentParser(add_help=False)
    directory.add_argument("--data-dir", type=Path, metavar="DIR", help="also MIXERSWEEP_DATA")
    action = actions.add_parser("list", parents=[directory], help="what is ready, and where")
    action.set_defaults(run=data_list)
    action = actions.add_parser("prepare", parents=[directory], help="fetch, check and convert a data set")
    action.add_argument("name", metavar="NAME", help="the data set").completer = completer.data_sets
    action.add_argument("--root", metavar="DIR", help="the folder of imagenet or image_folder, which is only checked")
    action.set_defaults(run=data_prepare)


def data_list(options: argparse.Namespace) -> int:
    """``data list``: which data sets are ready, where, and how large."""
    from mixersweep.data import listing

    rows = listing(_directory(options.data_dir))
    print(f"{'data':18} {'ready':6} {'size':>9}  where")
    for row in rows:
        print(f"{row.name:18} {'yes' if row.ready else 'no':6} {_format_size(row.size_bytes):>9}  {row.where}")
    return DONE


def data_prepare(options: argparse.Namespace) -> int:
    """``data prepare NAME``: fetch, check and convert a data set once; check a folder of images.

    Prints the path of the file, or for a folder of images the settings that ``train`` needs for it.
    """
    from mixersweep.config.spelling import spell
    from mixersweep.data import Folder, find, folders, prepare
    from mixersweep.errors import UserError

    source = find(options.name)
    if isinstance(source, Folder):
        root = folders.root_of(options.name, Path() if options.root else _directory(options.data_dir), options.root)
        found = folders.prepare(options.name, source, root, say)
        texts = {key: value.replace("${", r"\${") if isinstance(value, str) else value for key, value in found.items()}
        print(shlex.join(f"{key}={spell(key, text)}" for key, text in texts.items()))
        return DONE
    if options.root:
        raise UserError(f"--root {options.root}: {options.name} is no folder of images; --data-dir says where it goes")
    print(prepare(options.name, _directory(options.data_dir), say))
    return DONE


def _format_size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _directory(given: Path | None) -> Path:
    return data_dir("--data-dir") if given is None else expand_home(given, "--data-dir")
