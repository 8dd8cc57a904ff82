"""One writer a folder: the lock that the kernel lets go when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import Locked, OutputError

_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


@contextlib.contextmanager
def held(path: Path, busy: str, *, without: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, made when absent.

    busy: what another holder is doing and what to do about it. without: take no lock (`--no-lock`);
    the user vouches that nobody else writes.

    Raises:
        Locked: another process holds it.
        OutputError: it cannot be opened, or its file system knows no locks.
    """
    if without:
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        _lock(descriptor, path, busy)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock, found without writing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here: nobody holds one
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, path: Path, busy: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"{path.parent}: {busy}") from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise OutputError(f"{path}: cannot be locked: {error.strerror}") from error
        raise OutputError(
            f"{path}: this file system has no locks ({error.strerror}); write to a local disk, or "
            "give --no-lock and make sure yourself that no other run writes into this folder"
        ) from None
