"""Files that are either absent or whole: temporary name, fsync, rename, fsync of the directory.

A killed process leaves at most a file with the suffix `TEMPORARY_SUFFIX`, never a part of a file
under its final name; the next writer into that folder removes it (`sweep`). `pipeline.output_files`
adds messages for users.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\.(.+?)(\.old)?\.([0-9a-f]{6})-\d+-[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` when the block ends well: complete and durable.

    An older file of that name is replaced in one step; however else the block ends, nothing is left
    behind. Raises OSError: disk full, no permission and the like.
    """
    temporary = temporary_name(path)
    try:
        with os.fdopen(_held_file(temporary), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)  # still held: nobody sweeps it away before
        sync_directory(path.parent)
    finally:
        # Gone already when the rename happened; there after any failure or interrupt.
        with contextlib.suppress(OSError):
            temporary.unlink()


def temporary_name(path: Path, kind: str = "") -> Path:
    """A name beside `path` that nobody else has: of this machine, process and moment."""
    unique = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    return path.with_name(f".{path.name}{kind}.{unique}")


def hold(descriptor: int) -> bool:
    """Mark an open temporary as alive until it is closed; False: it was swept away just before."""
    with contextlib.suppress(OSError):  # no locks here: then `sweep` removes nothing, either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def sweep(folder: Path) -> None:
    """Remove the temporaries that dead writers of this machine left directly in `folder`."""
    for entry in list(os.scandir(folder)):
        found = _TEMPORARY.fullmatch(entry.name)
        if not found or found[3] != _machine():
            continue
        if found[2] and not (folder / found[1]).exists():
            continue  # died between two renames: this is the only copy
        with contextlib.suppress(OSError):  # alive, gone, or no locks here
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    Path(entry.path).unlink()
            finally:
                os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable (a rename alone is not)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _held_file(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if hold(descriptor):
            return descriptor
        os.close(descriptor)


def _machine() -> str:
    """Locks of other machines need not be seen on a network file system."""
    return hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:6]
