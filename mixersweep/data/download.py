"""Get published files: from where a user put them, else downloaded by torchvision; checked by sha256."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tarfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from mixersweep.data.source import Notify
from mixersweep.errors import UserError


@contextlib.contextmanager
def downloading(name: str, remedy: str) -> Iterator[None]:
    """A context for downloads: torchvision prints to stderr, and a failure becomes one ``UserError`` with a remedy."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, EOFError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data={name}: the download failed ({reason}); {remedy}, "
            f"or prepare it where there is a network and copy {name}.npz and {name}.npz.sha256"
        ) from error


def get_published(name: str, url: str, md5: str, sha256: str, folder: Path, scratch: Path, notify: Notify) -> Path:
    """The path of a published file, found in ``folder`` or downloaded into ``scratch``, after checking its sha256.

    Raises ``UserError`` if it is not the published file or the download fails.
    """
    file = url.rpartition("/")[2]
    path = folder / file
    if path.is_file():
        notify(f"{name}: reading {path}")
    else:
        path = scratch / file
        notify(f"{name}: downloading {url}")
        with downloading(name, f"put {file} into {folder}"):
            from torchvision.datasets.utils import download_url

            download_url(url, str(scratch), file, md5)
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"data={name}: {path} is not the published file (sha256 differs); get it again")
    return path


def get_unpacked(
    name: str, folder_name: str, archive: tuple[str, str, str], folder: Path, scratch: Path, notify: Notify
) -> Path:
    """The folder in which ``folder_name`` lies unpacked: ``folder`` if it is there, else ``scratch`` after unpacking.

    ``archive`` is the URL, md5 and sha256 of the archive. Raises what ``get_published`` does.
    """
    if (folder / folder_name).is_dir():
        notify(f"{name}: reading {folder / folder_name}")
        return folder
    path = get_published(name, *archive, folder, scratch, notify)
    with tarfile.open(path) as opened:
        opened.extractall(scratch, filter="data")  # nothing outside of it, whatever an archive names
    return scratch


@contextlib.contextmanager
def reading(name: str, where: Path) -> Iterator[None]:
    """A context in which a file that torchvision's reader refuses raises one ``UserError``."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).removesuffix(" You can use download=True to download it")
        raise UserError(f"data={name}: {where} is not as published ({reason}); remove it, and get it again") from error
