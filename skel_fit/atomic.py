"""Files that are either absent or whole: temporary name, fsync, rename, fsync of the directory.

A killed process leaves at most a file with the suffix `TEMPORARY_SUFFIX`, never a part of a file
under its final name. `pipeline.atomic` adds messages for users.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` when the block ends well: complete and durable.

    An older file of that name is replaced in one step; however else the block ends, nothing is left
    behind. Raises OSError: disk full, no permission and the like.
    """
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    )
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        # Gone already when the rename happened; there after any failure or interrupt.
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable (a rename alone is not)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
