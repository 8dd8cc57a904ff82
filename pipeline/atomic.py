"""Files that are either absent or whole: temporary name, fsync, rename, fsync of the directory.

Source: reference/pipeline.md 2.1 (what kill -9 leaves) and 4.4 step 3.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, OutputError

TEMPORARY_SUFFIX = ".tmp"


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8, NaN refused."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def pretty_json(value: Any) -> bytes:
    """Sorted, indented JSON for files that people open; as deterministic as the canonical form."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours; `InputError` naming the file when it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Publish `data` under `path` so that no reader ever sees a part of it.

    Args:
        path: final name; an older file of that name is replaced in one step.
        data: the whole content.

    Raises:
        OutputError: disk full, no permission and the like; nothing is left behind.
    """
    with published(path, len(data)) as temporary:
        _write_new(temporary, data)


@contextlib.contextmanager
def published(path: Path, size: int | None = None) -> Iterator[Path]:
    """A temporary file name; what the block writes (and syncs) there gets the name `path`.

    size: bytes that an error names; None: those that were written.

    Raises:
        OutputError: as `write_bytes`; nothing is left behind, whatever ends the block early.
    """
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    )
    try:
        yield temporary
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise output_error(error, path, _size(temporary) if size is None else size) from error
    finally:
        # Gone already when the rename happened; there after any failure or interrupt.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of the indented JSON form."""
    write_bytes(path, pretty_json(value))


def write_if_changed(path: Path, data: bytes) -> bool:
    """Write only when the content differs, so that a rerun with nothing to do touches nothing."""
    try:
        if path.read_bytes() == data:
            return False
    except FileNotFoundError:
        pass
    write_bytes(path, data)
    return True


def remove(path: Path) -> None:
    """Remove a file if it is there, durably."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(error, path, 0) from error
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Create a directory with its parents, each entry made durable."""
    if path.is_dir():
        return
    make_directory(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise OutputError(f"{path}: is a file, expected a directory; remove it") from None
        return
    except OSError as error:
        raise output_error(error, path, 0) from error
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable (a rename alone is not)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporaries(directory: Path) -> Iterator[Path]:
    """Temporary files that dead writers left directly in `directory`."""
    if directory.is_dir():
        yield from sorted(directory.glob(f".*{TEMPORARY_SUFFIX}"))


def output_error(error: OSError, path: Path, size: int) -> OutputError:
    """One line for a failed write: which file, how many bytes, why, what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "free space and rerun, finished shards are kept" if full else "fix it and rerun"
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot write {size} bytes: {reason}; {advice}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write_new(path: Path, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
