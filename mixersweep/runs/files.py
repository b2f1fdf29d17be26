"""Atomic file writes: to a temporary file in the same directory, flushed to disk, then renamed; and locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from mixersweep.errors import MixersweepError, UserError


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file for an atomic write; it appears at ``path`` only if the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with open_atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically; raises ``ValueError`` for NaN and infinities, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def overwrite_json(path: Path, value: Any) -> None:
    """Overwrite a small JSON document in place, which works even on a full disk.

    It is written in one call and padded to the old length, so that a reader finds the old or the new document.
    """
    text = json.dumps(value, allow_nan=False).encode()
    with path.open("r+b", buffering=0) as file:
        file.write(text.ljust(path.stat().st_size - 1) + b"\n")
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Read the JSON document at ``path``, or None without a file; raises ``UserError`` for invalid JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from None


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock at ``path``: the system's file lock or, where the file system has none, a file's existence.

    Raises ``MixersweepError`` where others hold it for longer than ``timeout`` seconds.
    """
    lock: BaseFileLock = FileLock(path, timeout=timeout)
    try:
        try:
            lock.acquire()
        except OSError as error:
            if error.errno not in _LOCKS_UNSUPPORTED:
                raise
            lock = SoftFileLock(path.with_name(f"{path.name}.held"), timeout=timeout)
            lock.acquire()
    except Timeout:
        raise MixersweepError(
            f"{lock.lock_file}: held for {timeout:g} s by another process; where there is none, remove it"
        ) from None
    try:
        yield
    finally:
        lock.release()


_LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO)


def sha256_of(path: Path, setting: str) -> str:
    """The sha256 (64 hex digits) of a file that a setting names; raises ``UserError`` where it cannot be read."""
    try:
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{setting}={path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file, cached until its size or modification time changes."""
    del size, mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
