"""Whole files (`skel_fit.atomic`) with messages for users, and JSON in one canonical form.

Source: docs/reference/pipeline.md#crash (what kill -9 leaves) and #resume.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import InputError, OutputError
from skel_fit.atomic import (
    TEMPORARY_SUFFIX,
    hold,
    sweep,
    sync_directory,
    temporary_name,
    whole_file,
)

SEAL = "content_sha256"
"""Key of the digest in a sealed JSON object."""


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8, NaN refused."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return _utf8(text)


def pretty_json(value: Any) -> bytes:
    """Sorted, indented JSON for files that people open; as deterministic as the canonical form."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return _utf8(text) + b"\n"


def _utf8(text: str) -> bytes:
    """JSON as bytes. A file's name that is not UTF-8 has lone surrogates in Python: they stand as
    JSON's own escapes, which read back the same."""
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours; `InputError` naming the file when it is damaged."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file; remove it")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """`pretty_json` of an object that carries the SHA-256 of its own content."""
    return pretty_json({**value, SEAL: _content_digest(value)})


def read_sealed(path: Path, *, required: bool = True) -> dict[str, Any]:
    """An object that `sealed_json` wrote, without its digest.

    required: refuse one without a digest (data of schema version 1 have none).

    Raises:
        InputError: not JSON, not an object, or its content is not what the digest says.
        FileNotFoundError: no such file.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged: not an object")
    content = {key: item for key, item in value.items() if key != SEAL}
    if len(content) == len(value) and not required:
        return content
    try:
        intact = value.get(SEAL) == _content_digest(content)
    except ValueError:  # numbers or texts that our JSON never holds
        intact = False
    if not intact:
        raise InputError(f"{path}: damaged: its content is not what its own digest says")
    return content


def _content_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def write_bytes(path: Path, data: bytes | memoryview, *, tidy: bool = True) -> None:
    """Publish `data` under `path` so that no reader ever sees a part of it.

    Args:
        path: final name; an older file of that name is replaced in one step.
        data: the whole content.
        tidy: first remove what dead writers left in the folder, which is listed for that.

    Raises:
        OutputError: disk full, no permission and the like; nothing is left behind.
    """
    with published(path, len(data), tidy=tidy) as stream:
        view = memoryview(data)
        while view:
            view = view[os.write(stream.fileno(), view) :]


@contextlib.contextmanager
def published(path: Path, size: int | None = None, *, tidy: bool = True) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` when the block ends well: complete and durable.

    size: bytes that an error names; None: those that were written. tidy: as `write_bytes`.

    Raises:
        OutputError: as `write_bytes`; nothing is left behind, whatever ends the block early.
    """
    written = size or 0
    try:
        if tidy:
            sweep(path.parent)
        with whole_file(path) as stream:
            try:
                yield stream
            finally:
                written = os.fstat(stream.fileno()).st_size if size is None else size
    except OSError as error:
        raise output_error(error, path, written) from error


@contextlib.contextmanager
def whole_folder(path: Path, mark: str) -> Iterator[Path]:
    """A new folder that gets the name `path` when the block ends well: complete and durable.

    mark: a file that such a folder has; an older folder is replaced only if it has it, too.

    Raises:
        OutputError: something else has that name, disk full and the like; nothing is left behind.
    """
    path = path.absolute()  # a relative path may be `.`, which has no name
    if path.exists() and not (path / mark).is_file() and not _is_empty(path):
        raise OutputError(f"{path}: exists and is no export (no {mark}); choose another folder")
    temporary, old = temporary_name(path), temporary_name(path, ".old")
    held = -1
    try:
        make_directory(path.parent)
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        hold(held)
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                with (Path(folder) / name).open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_directory(Path(folder))
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_directory(path.parent)
        sweep(path.parent)  # not before: what is left may be the only older copy
    except OSError as error:
        raise output_error(error, path, 0) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        if held >= 0:
            os.close(held)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


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
            raise OutputError(
                f"{path}: is a file, expected a directory; give another name"
            ) from None
        return
    except OSError as error:
        raise output_error(error, path, 0) from error
    sync_directory(path.parent)


def temporaries(directory: Path) -> Iterator[Path]:
    """Temporary files that dead writers left directly in `directory`."""
    if directory.is_dir():
        yield from sorted(directory.glob(f".*{TEMPORARY_SUFFIX}"))


def output_error(error: OSError, path: Path, size: int) -> OutputError:
    """One line for a failed write: which file, how many bytes, why, what to do."""
    if error.errno == errno.ENOENT and not path.parent.is_dir():
        return OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "free space and rerun, finished shards are kept" if full else "fix it and rerun"
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot write {size} bytes: {reason}; {advice}")
