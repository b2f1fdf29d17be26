"""Getting published files: looked for where a user put them, else downloaded by torchvision, and checked by sha256."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tarfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from mixersweep.data.source import Report
from mixersweep.errors import UserError


@contextlib.contextmanager
def downloading(name: str, otherwise: str) -> Iterator[None]:
    """What torchvision prints goes to stderr, and a download that fails is one ``UserError`` with what else to do."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, EOFError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data={name}: the download failed ({reason}); {otherwise}, "
            f"or prepare it where there is a network and copy {name}.npz and {name}.npz.sha256"
        ) from error


def published(name: str, url: str, md5: str, sha256: str, folder: Path, scratch: Path, report: Report) -> Path:
    """The file of this URL: as it lies in ``folder``, or downloaded into ``scratch``; checked before it is opened.

    Raises ``UserError`` where it is not the published file or cannot be had.
    """
    file = url.rpartition("/")[2]
    path = folder / file
    if path.is_file():
        report(f"{name}: reading {path}")
    else:
        path = scratch / file
        report(f"{name}: downloading {url}")
        with downloading(name, f"put {file} into {folder}"):
            from torchvision.datasets.utils import download_url

            download_url(url, str(scratch), file, md5)
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"data={name}: {path} is not the published file (sha256 differs); get it again")
    return path


def unpacked(
    name: str, folder_name: str, archive: tuple[str, str, str], folder: Path, scratch: Path, report: Report
) -> Path:
    """The folder that holds ``folder_name``: ``folder`` if it is there unpacked, else ``scratch`` after unpacking.

    ``archive`` is its URL, md5 and sha256.
    """
    if (folder / folder_name).is_dir():
        report(f"{name}: reading {folder / folder_name}")
        return folder
    path = published(name, *archive, folder, scratch, report)
    with tarfile.open(path) as opened:
        opened.extractall(scratch, filter="data")  # nothing outside of it, whatever an archive names
    return scratch


@contextlib.contextmanager
def reading(name: str, where: Path) -> Iterator[None]:
    """A file that torchvision's reader refuses, by its md5 or its form, is one ``UserError``."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).removesuffix(" You can use download=True to download it")
        raise UserError(f"data={name}: {where} is not as published ({reason}); remove it, and get it again") from error
